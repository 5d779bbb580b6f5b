"""One-hot vectors in a network that are never an array: contracting them gathers or scatters.

The sibling of `Selection` whose pattern is data: each weight has its own, found by a solver, and
a stack of weights is a batch of patterns.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from lrjax.formats.picked import Picked, lazily

Labels = tuple[int, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["index"], meta_fields=["ins"])
@dataclasses.dataclass(frozen=True)
class Choice:
    """C[out, in] = 1 where index[out] = in, else 0: every output slot takes one input slot.

    - `index`: whole numbers from 0 to prod(ins) - 1 in a floating dtype, of any shape: it is a
      factor, and what trains or casts factors meets one dtype. No gradient reaches it.
    - `ins`: how input slots split, row-major, into axes; the shape is index.shape + ins.
    """

    index: Any
    ins: tuple[int, ...]

    dtype = None

    @property
    def outs(self) -> tuple[int, ...]:
        """Sizes of the output axes."""
        return tuple(self.index.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the output axes, then of the input axes."""
        return (*self.outs, *self.ins)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def astype(self, dtype: Any) -> "Choice":
        """Itself: ones and zeros have no dtype."""
        return self

    def reshape(self, shape: Sequence[int]) -> "Choice":
        """The same slots, split into other axes; no axis may hold slots of both sides."""
        shape, size = tuple(shape), math.prod(self.outs)
        cut = next(k for k in range(len(shape) + 1) if math.prod(shape[:k]) == size)
        while cut < len(shape) and len(shape) - cut > len(self.ins) and shape[cut] == 1:
            cut += 1
        x = self.index
        if isinstance(x, jax.ShapeDtypeStruct):
            return Choice(jax.ShapeDtypeStruct(shape[:cut], x.dtype), shape[cut:])
        return Choice(x.reshape(shape[:cut]), shape[cut:])

    def dense(self, dtype: Any) -> Array:
        """The array itself."""
        here = jax.nn.one_hot(self.number, math.prod(self.ins), dtype=dtype)
        return here.reshape(self.shape)

    @property
    def number(self) -> Array:
        """The index as integers; unsigned, for none counts from the end."""
        return lax.convert_element_type(self.index, jnp.uint32)


def gather(x: Array, rest: int, shared: Sequence[int], choice: Choice) -> Array | Picked:
    """Of x [*rest, *shared, *ins] what is chosen, [*rest, *outs]; shared are axes of `outs`."""
    x = _whole(x, rest)
    size = math.prod(choice.ins)
    x = x.reshape(*x.shape[:rest], -1)
    flat = _offset(choice, shared, size)
    if lazily(x, flat):
        return Picked(x, flat)
    sharding = None
    if (spec := _spec(x)) is not None:
        sharding = PartitionSpec(*spec[:rest], *(_spec(flat) or ()))
    at = (*(slice(None),) * rest, flat)
    return x.at[at].get(mode="promise_in_bounds", out_sharding=sharding)


def scatter(x: Array, rest: int, kept: Sequence[int], choice: Choice) -> Array:
    """Entries of x [*rest, *outs] added up where chosen: [*rest, *kept, *ins], kept of `outs`."""
    size = math.prod(choice.ins)
    sizes = tuple(choice.outs[d] for d in kept)
    x = jnp.broadcast_to(_whole(x, 0), (*x.shape[:rest], *choice.outs))
    flat = _offset(choice, kept, size).reshape(-1)
    x = x.reshape(*x.shape[:rest], -1)
    zeros = jnp.zeros((*x.shape[:rest], math.prod(sizes) * size), x.dtype)
    at = (*(slice(None),) * rest, flat)
    y = zeros.at[at].add(x, mode="promise_in_bounds")
    return y.reshape(*x.shape[:rest], *sizes, *choice.ins)


def _offset(choice: Choice, axes: Sequence[int], size: int) -> Array:
    """The index among the slots of every entry of some of the output axes, row-major."""
    flat, stride = choice.number, size
    for d in reversed(axes):
        flat = flat + stride * lax.broadcasted_iota(jnp.uint32, choice.outs, d)
        stride *= choice.outs[d]
    return flat


def _whole(x: Array, rest: int) -> Array:
    """Slots on every device, where an explicit mesh holds them apart."""
    spec = _spec(x)
    if spec is None or all(axis is None for axis in spec[rest:]):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec[:rest], *(None,) * (x.ndim - rest)))


def _spec(x: Array) -> PartitionSpec | None:
    """The partition of an array under an explicit mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    spec = jax.typeof(x).sharding.spec
    return PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))
