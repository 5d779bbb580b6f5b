"""A matrix of zeros and ones in a network that is never an array: contracting it moves slots.

Formats whose pieces meet in an irregular pattern (blocks of unequal rank, sibling blocks of a
hierarchy, reordered rows) name the pattern so. It has no parameters, no bytes and no arithmetic.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from lrjax.formats.choice import Choice
from lrjax.trees import Weight


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=[], meta_fields=["index", "outs", "ins"]
)
@dataclasses.dataclass(frozen=True)
class Selection:
    """S[out, in] = 1 where index[out] = in, else 0: every slot meets at most one other.

    - `index`: for each of the prod(outs) output slots its input slot, or -1 for none; no input
      slot occurs twice.
    - `outs`, `ins`: how output and input slots split, row-major, into axes; the shape is
      outs + ins.

    It is static, and stands among the operands of a network. Where a contraction sums all of its
    axes on one side it is a gather; anything else treats it as the array `dense()`.
    """

    index: tuple[int, ...]
    outs: tuple[int, ...]
    ins: tuple[int, ...]

    dtype = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the output axes, then of the input axes."""
        return (*self.outs, *self.ins)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def astype(self, dtype: Any) -> "Selection":
        """Itself: it has no dtype."""
        return self

    def reshape(self, shape: Sequence[int]) -> "Selection":
        """The same slots, split into other axes; no axis may hold slots of both sides."""
        shape = tuple(shape)
        cut = next(k for k in range(len(shape) + 1) if math.prod(shape[:k]) == len(self.index))
        while cut < len(shape) and len(shape) - cut > len(self.ins) and shape[cut] == 1:
            cut += 1
        return Selection(self.index, shape[:cut], shape[cut:])

    def dense(self, dtype: Any) -> Array:
        """The array itself."""
        size = math.prod(self.ins)
        index = np.asarray(self.index, np.int32).reshape(-1, 1)
        return jnp.asarray((index == np.arange(size)).reshape(self.shape), dtype)

    def forward(self, x: Array) -> Array:
        """S x for x [*ins, ...]: [*outs, ...]."""
        return _gather(x, len(self.ins), self.index, self.outs)

    def backward(self, y: Array) -> Array:
        """S' y for y [*outs, ...]: [*ins, ...]."""
        inverse = _inverse(self.index, math.prod(self.ins))
        return _gather(y, len(self.outs), inverse, self.ins)


def as_array(x: Any, dtype: Any) -> Any:
    """An operand as an array, a selection, choice or weight written out."""
    if isinstance(x, Weight):
        return x.densify().astype(dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return x.dense(dtype) if isinstance(x, Selection | Choice) else x


@functools.lru_cache(1024)
def _inverse(index: tuple[int, ...], size: int) -> tuple[int, ...]:
    inverse = [-1] * size
    for out, slot in enumerate(index):
        if slot >= 0:
            inverse[slot] = out
    return tuple(inverse)


def _gather(x: Array, axes: int, index: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """Rows of x, its first axes merged, at `index`, where -1 is a row of zeros."""
    x = _whole(x, axes)
    rest = x.shape[axes:]
    x = x.reshape(math.prod(x.shape[:axes]), *rest)
    count = x.shape[0]
    if index != tuple(range(count)):
        at = np.asarray(index, np.int32)
        if at.size and at.min() < 0:
            x = lax.pad(x, np.zeros((), x.dtype), ((0, 1, 0), *((0, 0, 0),) * len(rest)))
            at = np.where(at < 0, count, at)
        x = _rows(x, at)
    return x.reshape(*sizes, *rest)


def _rows(x: Array, at: np.ndarray) -> Array:
    spec = _sharding(x)
    if spec is not None:
        return x.at[at].get(mode="promise_in_bounds", out_sharding=spec)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(1, x.ndim)), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(x, at[:, None], numbers, (1, *x.shape[1:]), mode=mode)


def _whole(x: Array, axes: int) -> Array:
    """Slots on every device, where an explicit mesh holds them apart; they are few."""
    spec = _sharding(x)
    if spec is None or all(axis is None for axis in spec[:axes]):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*(None,) * axes, *spec[axes:]))


def _sharding(x: Array) -> PartitionSpec | None:
    """The partition of an array under an explicit mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    spec = jax.typeof(x).sharding.spec
    return PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))
