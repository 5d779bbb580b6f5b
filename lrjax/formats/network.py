"""The one idea: a weight is a small labelled tensor network.

A `Network` holds operands whose axes carry labels. Dense dimension k of the weight is the
row-major merge of the labels `dims[k]`; labels that are in no dimension are summed. Reshapes,
transposes and slices of the weight are moves on labels, and never touch the dense array.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lrjax.errors import ShapeError, message
from lrjax.formats.choice import Choice
from lrjax.formats.contract import promoted, side_of
from lrjax.formats.selection import Selection, as_array
from lrjax.trees import Weight


class Unsupported(Exception):
    """An operation has no form on factors; raised while tracing, never at run time."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["operands"], meta_fields=["labels", "dims"]
)
@dataclasses.dataclass(frozen=True)
class Network:
    """One labelled tensor network.

    W[d_0, d_1, ...] = sum over inner labels of the product of the operands.

    - `labels[i]` names the axes of `operands[i]`; equal labels have equal sizes.
    - `dims[k]` names, in row-major order, the labels that merge into dense dimension k;
      `()` is a dimension of size one.
    - A label may occur in two dims: the weight is then block diagonal in it.
    - An operand may itself be a weight, such as the core of a hierarchy: activations go through it
      in its own steps. Its rows and columns meet others in selections, and are in no dimension;
      its factors have its stack axes in front.
    """

    operands: tuple[Any, ...]
    labels: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, pattern: str, *operands: Any) -> "Network":
        """A network from a pattern, e.g. `"... i k, ... j l -> ... (i j) (k l)"`.

        `...` stands for the leading stack axes, the same in every operand that has it.

        Raises:
          ShapeError: the pattern does not fit the operands.
        """
        labels, dims = _parse(pattern, tuple(len(x.shape) for x in operands))
        return cls(tuple(operands), labels, dims)

    @classmethod
    def of(cls, array: Any) -> "Network":
        """A dense array as a network of one operand."""
        ls = tuple(range(len(array.shape)))
        return cls((array,), (ls,), tuple((i,) for i in ls))

    @property
    def sizes(self) -> dict[int, int]:
        """Size of each label."""
        return {
            k: n
            for x, ls in zip(self.operands, self.labels, strict=True)
            for k, n in zip(ls, x.shape, strict=True)
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, derived from the operands."""
        sizes = self.sizes
        return tuple(math.prod(sizes[k] for k in group) for group in self.dims)

    @property
    def dtype(self) -> Any:
        """The promoted dtype of the operands."""
        return promoted(x.dtype for x in self.operands)

    def fresh(self) -> int:
        """A label that this network does not use."""
        return 1 + max((k for ls in self.labels for k in ls), default=-1)

    def with_dims(self, dims: Sequence[Sequence[int]]) -> "Network":
        """The same operands under other dense dimensions."""
        return dataclasses.replace(self, dims=tuple(tuple(group) for group in dims))

    def with_operand(self, array: Any, labels: Sequence[int]) -> "Network":
        """One operand more."""
        return Network((*self.operands, array), (*self.labels, tuple(labels)), self.dims)

    def canonical(self) -> "Network":
        """The same network with labels numbered by first appearance, so that equal ones compare."""
        ids: dict[int, int] = {}
        for ls in self.labels:
            for k in ls:
                ids.setdefault(k, len(ids))
        rename = lambda groups: tuple(tuple(ids[k] for k in group) for group in groups)
        return Network(self.operands, rename(self.labels), rename(self.dims))

    def split(self, label: int, sizes: Sequence[int]) -> tuple["Network", tuple[int, ...]]:
        """Split one label into several, row-major, in every operand that carries it.

        Returns:
          The network and the new labels.
        """
        first = self.fresh()
        new = tuple(range(first, first + len(sizes)))
        operands, labels = [], []
        for x, ls in zip(self.operands, self.labels, strict=True):
            if label in ls:
                k = ls.index(label)
                x = reshape_operand(x, (*x.shape[:k], *sizes, *x.shape[k + 1 :]))
                ls = (*ls[:k], *new, *ls[k + 1 :])
            operands.append(x)
            labels.append(ls)
        dims = tuple(tuple(_replaced(group, label, new)) for group in self.dims)
        return Network(tuple(operands), tuple(labels), dims), new

    def apart(self, axis: int) -> "Network":
        """The same network with no label of dense dimension `axis` in another dimension.

        A block label that two dimensions share becomes two, with an identity between them: what
        cuts one dimension then leaves the other as it is.
        """
        net = self
        for k in self.dims[axis]:
            if any(k in group for d, group in enumerate(self.dims) if d != axis):
                new, size = net.fresh(), net.sizes[k]
                dims = list(net.dims)
                dims[axis] = tuple(_replaced(dims[axis], k, (new,)))
                same = Selection(tuple(range(size)), (size,), (size,))
                net = net.with_operand(same, (new, k)).with_dims(dims)
        return net

    def map_label(self, label: int, f: Callable[[Any, int], Any]) -> "Network":
        """Apply `f(operand, axis)` to every operand that carries the label (it may resize it).

        Raises:
          Unsupported: the label belongs to two dense dimensions, so that one would move the other.
        """
        if sum(label in group for group in self.dims) > 1:
            raise Unsupported("a cut through one of two dimensions that share a block label")

        def one(x: Any, axis: int) -> Any:
            if isinstance(x, Choice) and axis < len(x.outs):
                return Choice(f(x.index, axis), x.ins)
            if isinstance(x, Weight):
                return jax.tree.map(lambda leaf: f(leaf, axis), x)
            return f(as_array(x, self.dtype), axis)

        operands = tuple(
            one(x, ls.index(label)) if label in ls else x
            for x, ls in zip(self.operands, self.labels, strict=True)
        )
        return dataclasses.replace(self, operands=operands)

    def expanded(self) -> "Network":
        """The same network with every selection written out as an array."""
        operands = tuple(as_array(x, self.dtype) for x in self.operands)
        return dataclasses.replace(self, operands=operands)

    def reshape(self, shape: Sequence[int]) -> "Network":
        """The same weight under another dense shape: labels regroup, or split where they must.

        Raises:
          Unsupported: the new shape cuts a label where it does not divide.
        """
        if tuple(shape) == self.shape:
            return self
        net, sizes = self, self.sizes
        todo = [k for group in self.dims for k in group if sizes[k] != 1]
        dims: list[list[int]] = []
        for n in shape:
            group: list[int] = []
            while n > 1:
                if not todo:
                    raise Unsupported(f"reshape {self.shape} to {tuple(shape)}")
                k = todo.pop(0)
                q = sizes[k]
                if n % q == 0:
                    n //= q
                    group.append(k)
                elif q % n == 0 and n > 1:
                    net, new = net.split(k, (n, q // n))
                    swap = functools.partial(_replaced, label=k, new=new)
                    dims, group, todo = [swap(d) for d in dims], swap(group), swap([k, *todo])
                    sizes, n = net.sizes, 1
                    group.append(todo.pop(0))
                else:
                    raise Unsupported(f"reshape {self.shape} to {tuple(shape)} cuts a factor")
            if n == 0:
                raise Unsupported("reshape of an empty weight")
            dims.append(group)
        return net.with_dims(dims)


def _replaced(labels: Sequence[int], label: int, new: Sequence[int]) -> list[int]:
    return [j for k in labels for j in (new if k == label else (k,))]


def reshape_operand(x: Any, shape: Sequence[int]) -> Any:
    """`x.reshape(shape)`, also for an abstract array, or the stack axes of a weight."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype)
    if isinstance(x, Weight):
        inner = len(side_of(x).outs) + len(side_of(x).ins)
        lead, stack = tuple(shape)[: len(shape) - inner], len(x.shape) - inner  # pyright: ignore
        return jax.tree.map(lambda f: reshape_operand(f, (*lead, *f.shape[stack:])), x)
    return x.reshape(tuple(shape))


@functools.lru_cache(1024)
def _parse(pattern: str, ndims: tuple[int, ...]):
    left, _, right = pattern.partition("->")
    terms = [term.split() for term in left.split(",")]
    if len(terms) != len(ndims) or not right:
        todo = "Give one term an operand, then '->' and the dense dimensions."
        got = f"{len(ndims)} operands for the pattern {pattern!r}"
        raise ShapeError(message(got=got, expected=f"{len(terms)} operands", todo=todo))
    lead = max((n - len(t) + 1 for t, n in zip(terms, ndims, strict=True) if "..." in t), default=0)
    stack = [f"...{i}" for i in range(lead)]
    ids: dict[str, int] = {}
    labels = []
    for term, n in zip(terms, ndims, strict=True):
        names = [x for name in term for x in (stack if name == "..." else [name])]
        if len(names) != n:
            todo = "Leading stack axes must be the same for all factors."
            got = f"a factor with {n} axes for {' '.join(term)!r}"
            raise ShapeError(message(got=got, expected=f"{len(names)} axes", todo=todo))
        labels.append(tuple(ids.setdefault(name, len(ids)) for name in names))
    dims = []
    for group in re.findall(r"\([^)]*\)|\S+", right):
        if group == "...":
            dims += [(ids[name],) for name in stack]
        else:
            dims.append(tuple(ids[name] for name in group.strip("()").split()))
    return tuple(labels), tuple(dims)
