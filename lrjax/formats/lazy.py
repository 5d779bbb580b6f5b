"""Lazy dense arrays: sums of networks and lazy concatenations, and their products."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lrjax.errors import ShapeError, message
from lrjax.formats.contract import Order, cast, promoted
from lrjax.formats.network import Network, Unsupported
from lrjax.formats.product import contract_networks, join_networks

# A lazy product of sums has as many terms as the lengths multiply to; more is no longer cheap.
MAX_TERMS = 4


class Operators:
    """`@`, `.T` and refusal of NumPy, for everything that stands for a dense array.

    There is no `__jax_array__`: it would win over `__rmatmul__` and rebuild the weight silently.
    """

    __array_ufunc__ = None
    shape: tuple[int, ...]

    def lazy(self, name: str = "?") -> "LazyArray":
        """This array as a lazy array; `name` appears in messages."""
        raise NotImplementedError

    @property
    def ndim(self) -> int:
        """Number of dense dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of the dense array."""
        return math.prod(self.shape)

    @property
    def T(self) -> "LazyArray":
        """The dense array with its dimensions reversed, lazily."""
        return self.lazy().transpose(range(self.ndim)[::-1])

    def densify(self) -> Array:
        """The dense array."""
        return self.lazy().dense()

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["terms"], meta_fields=["axis", "name"]
)
@dataclasses.dataclass(frozen=True)
class LazyArray(Operators):
    """A dense array that is not formed.

    - `axis is None`: the sum of the networks `terms`, all of one dense shape.
    - otherwise: the concatenation along `axis` of the lazy arrays `terms`.
    - `name`: the tree path of the weight, for messages.
    """

    terms: tuple[Any, ...]
    axis: int | None = None
    name: str = "?"

    @classmethod
    def of(cls, array: Any, name: str = "?") -> "LazyArray":
        """A dense array as a lazy one."""
        return cls((Network.of(array),), None, name)

    def lazy(self, name: str = "?") -> "LazyArray":
        """This array, under another name if one is given."""
        return self if name == "?" else dataclasses.replace(self, name=name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense array."""
        shape = self.terms[0].shape
        if self.axis is None:
            return shape
        total = sum(part.shape[self.axis] for part in self.terms)
        return (*shape[: self.axis], total, *shape[self.axis + 1 :])

    @property
    def dtype(self) -> Any:
        """The promoted dtype of all operands."""
        return promoted(part.dtype for part in self.terms)

    def map(self, f: Callable[[Network], Network], axis: int | None = None) -> "LazyArray":
        """Apply a linear function to every network.

        Args:
          f: the function.
          axis: where the cut of a concatenation ends up, if not where it was.
        """
        if self.axis is None:
            return dataclasses.replace(self, terms=tuple(f(net) for net in self.terms))
        axis = self.axis if axis is None else axis
        return LazyArray(tuple(part.map(f) for part in self.terms), axis, self.name)

    def transpose(self, perm: Sequence[int]) -> "LazyArray":
        """Permute the dense dimensions."""
        perm = tuple(perm)
        if self.axis is None:
            return self.map(lambda net: net.with_dims([net.dims[p] for p in perm]))
        parts = tuple(part.transpose(perm) for part in self.terms)
        return LazyArray(parts, perm.index(self.axis), self.name)

    def dense(self) -> Array:
        """The dense array."""
        if self.axis is not None:
            return lax.concatenate([part.dense() for part in self.terms], self.axis)
        ls = tuple(range(self.ndim))
        parts = [contract_networks([(net, ls)], ls) for net in self.terms]
        return cast(functools.reduce(operator.add, parts), self.dtype)


def as_lazy(x: Any) -> Any:
    """A factored array as a lazy one; anything else unchanged."""
    return x.lazy() if isinstance(x, Operators) else x


def product(
    operands: Sequence[tuple[Any, Sequence[Hashable]]],
    out: Sequence[Hashable],
    *,
    lazy: bool = False,
    order: Order = Order.STREAM,
    precision: Any = None,
    out_dtype: Any = None,
) -> Any:
    """Sum over all labels not in `out` of the product of arrays and lazy arrays.

    Args:
      operands: arrays (activations) or lazy arrays, with one label a dense dimension.
      out: labels of the result.
      lazy: hand back a lazy array, else contract.
      order: which contraction orders are allowed.
      precision: as in `jax.lax.dot_general`.
      out_dtype: dtype of a contracted result; by default the promoted dtype.

    Raises:
      Unsupported: a lazy product of long sums, or factorisations that do not fit together.
    """
    operands = [(as_lazy(x), tuple(ls)) for x, ls in operands]
    again = functools.partial(
        product, lazy=lazy, order=order, precision=precision, out_dtype=out_dtype
    )
    for i, (x, ls) in enumerate(operands):
        if isinstance(x, LazyArray) and x.axis is not None:
            cut = ls[x.axis]
            sizes = [part.shape[x.axis] for part in x.terms]
            rest = [_pieces(y, own, cut, sizes) for y, own in operands[:i] + operands[i + 1 :]]
            parts = []
            for j, part in enumerate(x.terms):
                others = [(pieces[j], own) for pieces, own in rest]
                parts.append(again([*others[:i], (part, ls), *others[i:]], out))
            return _rejoin(parts, out.index(cut) if cut in out else None, x.name)

    dense = [(LazyArray.of(x), ls) for x, ls in operands if not isinstance(x, LazyArray)]
    weights = [(x, ls) for x, ls in operands if isinstance(x, LazyArray)]
    choices = list(itertools.product(*(x.terms for x, _ in dense + weights)))
    labels = [ls for _, ls in dense + weights]
    if lazy:
        if len(choices) > MAX_TERMS:
            raise Unsupported(f"product of sums with {len(choices)} terms")
        nets = tuple(join_networks(list(zip(c, labels, strict=True)), out) for c in choices)
        return LazyArray(nets, None, weights[0][0].name if weights else "?")
    if out_dtype is None:
        out_dtype = promoted(x.dtype for x, _ in dense + weights)
    parts = [
        contract_networks(
            list(zip(c, labels, strict=True)),
            out,
            activations=len(dense),
            order=order,
            precision=precision,
            out_dtype=out_dtype,
        )
        for c in choices
    ]
    return functools.reduce(operator.add, parts)


def _pieces(x: Any, labels: tuple, cut: Hashable, sizes: list[int]) -> tuple[list[Any], tuple]:
    """What each part of a concatenation meets of another operand."""
    if cut not in labels:
        return [x] * len(sizes), labels
    axis = labels.index(cut)
    if not isinstance(x, LazyArray):
        return list(lax.split(jnp.asarray(x), sizes, axis=axis)), labels
    if x.axis == axis and [part.shape[axis] for part in x.terms] == sizes:
        return list(x.terms), labels
    raise Unsupported("product of lazy arrays that are cut differently")


def _rejoin(parts: list[Any], axis: int | None, name: str) -> Any:
    lazy = isinstance(parts[0], LazyArray)
    if axis is not None:
        return LazyArray(tuple(parts), axis, name) if lazy else lax.concatenate(parts, axis)
    if not lazy:
        return functools.reduce(operator.add, parts)
    if any(part.axis is not None for part in parts):
        raise Unsupported("sum of concatenations")
    return LazyArray(tuple(net for part in parts for net in part.terms), None, name)


def matmul(a: Any, b: Any, *, order: Order = Order.STREAM, precision: Any = None) -> Any:
    """`jnp.matmul` of which either operand may be lazy; batch dimensions broadcast.

    Raises:
      ShapeError: the contracted sizes differ.
    """
    a, b = (as_lazy(x) if isinstance(x, Operators) else jnp.asarray(x) for x in (a, b))
    inner = (a.shape[-1], b.shape[max(0, b.ndim - 2)]) if a.ndim and b.ndim else (0, 1)
    if inner[0] != inner[1]:
        got = f"{a.shape} @ {b.shape}"
        todo = "Check which side is the input."
        raise ShapeError(message(got=got, expected="equal inner sizes", todo=todo))
    batch = max(a.ndim, b.ndim, 2) - 2
    left = [("b", i) for i in range(batch + 2 - a.ndim, batch)] if a.ndim > 1 else []
    right = [("b", i) for i in range(batch + 2 - b.ndim, batch)] if b.ndim > 1 else []
    la = left + ["m", "k"][-a.ndim :]
    lb = right + ["k", "n"][: b.ndim]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, la = drop_unit(a, la, dict(zip((("b", i) for i in range(batch)), lead, strict=True)))
    b, lb = drop_unit(b, lb, dict(zip((("b", i) for i in range(batch)), lead, strict=True)))
    out = [x for x in dict.fromkeys([("b", i) for i in range(batch)] + la + lb) if x != "k"]
    lazy = isinstance(a, LazyArray) and isinstance(b, LazyArray)
    return product([(a, la), (b, lb)], out, lazy=lazy, order=order, precision=precision)


def drop_unit(x: Any, labels: Sequence[Hashable], sizes: Mapping[Any, Any]) -> tuple[Any, list]:
    """Remove the size-one dimensions that broadcast against a larger size of their label."""
    gone = [d for d, k in enumerate(labels) if x.shape[d] == 1 and sizes.get(k, 1) != 1]
    if not gone:
        return x, list(labels)
    kept = [d for d in range(x.ndim) if d not in gone]
    if isinstance(x, LazyArray):
        if x.axis in gone:
            raise Unsupported("broadcast along a concatenation")
        axis = None if x.axis is None else kept.index(x.axis)
        x = x.map(lambda net: net.with_dims([net.dims[d] for d in kept]), axis)
    else:
        x = x.reshape([x.shape[d] for d in kept])
    return x, [labels[d] for d in kept]
