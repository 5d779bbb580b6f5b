"""Views: how a value is an array's own dims, split, merged, permuted, sliced and indexed.

A root array has dims 0, 1, ...; a view of it has, for each of its own dims, the axes merged in it
(row-major), each a run along one dim of the root.  Axes that were indexed away are kept as
`fixed`, so that the root's dims are always accounted for.  Purely static: no arrays here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Scanned:
    """The index is the counter of one scan."""

    scan: tuple[int, ...]


@dataclass(frozen=True)
class At:
    """The index is the value of a variable of the program; with `many`, one index a token."""

    var: Any
    many: bool = False


@dataclass(frozen=True)
class Axis:
    """Positions start, ..., start + size - 1, each `stride` apart, of dim `dim` of the root.

    dim None is an axis that the root does not have (a broadcast).
    """

    dim: int | None
    stride: int
    size: int
    start: int | Scanned | At = 0


@dataclass(frozen=True)
class View:
    """A view of the array `root` (any hashable name)."""

    root: Any
    dims: tuple[tuple[Axis, ...], ...]
    fixed: tuple[Axis, ...] = field(default=())

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, in row-major order."""
        return tuple(a for d in self.dims for a in d)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view."""
        return tuple(math.prod(a.size for a in d) for d in self.dims)


def whole(root: Any, shape: Sequence[int]) -> View:
    """The root itself."""
    return View(root, tuple((Axis(d, 1, n),) for d, n in enumerate(shape)))


def transpose(view: View, perm: Sequence[int]) -> View:
    """Permute the dims."""
    return replace(view, dims=tuple(view.dims[p] for p in perm))


def broadcast(view: View, shape: Sequence[int], where: Sequence[int]) -> View:
    """lax.broadcast_in_dim: operand dim k becomes dim where[k]; the rest is new."""
    dims: list[tuple[Axis, ...]] = [(Axis(None, 0, n),) if n != 1 else () for n in shape]
    fixed = list(view.fixed)
    for d, k in zip(view.dims, where, strict=True):
        if math.prod(a.size for a in d) == shape[k]:
            dims[k] = d
        else:
            fixed += [a for a in d if a.dim is not None]
    return View(view.root, tuple(dims), tuple(fixed))


def squeeze(view: View, dims: Sequence[int]) -> View:
    """Remove dims of size one."""
    gone = [a for d in dims for a in view.dims[d] if a.dim is not None]
    kept = tuple(d for k, d in enumerate(view.dims) if k not in dims)
    return View(view.root, kept, view.fixed + tuple(gone))


def cut(view: View, dim: int, start: int | At, size: int) -> View | None:
    """Positions start : start + size of one dim; None if they are not a run of axes."""
    if size == view.shape[dim]:
        return view
    axes = [a for a in view.dims[dim] if a.size != 1]
    ones = tuple(a for a in view.dims[dim] if a.size == 1 and a.dim is not None)
    fixed = view.fixed + ones
    if len(axes) == 1 and (first := _offset(axes[0], start, size)):
        if size == 1 and first.dim is not None:
            return _put(view, dim, (), (*fixed, first))
        return _put(view, dim, (first,) if size != 1 else (), fixed)
    if isinstance(start, At):
        return None
    if size == 1:  # one position of merged axes: one of each
        places = _unravel(start, [a.size for a in axes])
        picked = [_offset(a, i, 1) for a, i in zip(axes, places, strict=True)]
        if all(picked):
            return _put(view, dim, (), (*fixed, *(p for p in picked if p and p.dim is not None)))
        return None
    inner = math.prod(a.size for a in axes[1:])
    if (
        start % inner
        or size % inner
        or not (first := _offset(axes[0], start // inner, size // inner))
    ):
        return None
    return _put(view, dim, (first, *axes[1:]), fixed)


def index(view: View, dim: int, start: int | Scanned | At) -> View | None:
    """One position of one dim, which goes away."""
    axes = [a for a in view.dims[dim] if a.size != 1]
    ones = tuple(a for a in view.dims[dim] if a.size == 1 and a.dim is not None)
    if not axes and ones:
        axes, ones = [ones[0]], ones[1:]
    if len(axes) != 1 or not (one := _offset(axes[0], start, 1)):
        return None
    fixed = view.fixed + ones + ((one,) if one.dim is not None else ())
    return View(view.root, view.dims[:dim] + view.dims[dim + 1 :], fixed)


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """Row-major reshape by splitting and merging axes; None where it cuts across them."""
    todo, dims = list(view.axes), []
    for n in shape:
        group, m = [], 1
        if n == 1 and todo and todo[0].size == 1:
            group.append(todo.pop(0))
        while m < n:
            if not todo:
                return None
            axis, want = todo.pop(0), n // m
            if n % m == 0 and want % axis.size == 0:
                group.append(axis)
                m *= axis.size
            elif n % m == 0 and axis.size % want == 0 and (pair := _split(axis, want)):
                group.append(pair[0])
                todo.insert(0, pair[1])
                m = n
            else:
                return None
        dims.append(tuple(group))
    if any(a.size != 1 for a in todo):
        return None
    return View(view.root, tuple(dims), view.fixed + tuple(a for a in todo if a.dim is not None))


def _offset(axis: Axis, start: int | Scanned | At, size: int) -> Axis | None:
    if axis.dim is None:
        return replace(axis, size=size)
    if not isinstance(start, int):
        return replace(axis, start=start, size=size) if axis.start == 0 else None
    if not isinstance(axis.start, int):
        return axis if size == axis.size else None
    return replace(axis, start=axis.start + start, size=size)


def _split(axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
    inner = axis.size // outer
    if not isinstance(axis.start, int) or axis.start % inner:
        return None
    stride = axis.stride * inner
    return Axis(axis.dim, stride, outer, axis.start // inner), Axis(axis.dim, axis.stride, inner)


def _put(view: View, dim: int, axes: tuple[Axis, ...], fixed: tuple[Axis, ...]) -> View:
    return View(view.root, (*view.dims[:dim], axes, *view.dims[dim + 1 :]), fixed)


def _unravel(position: int, sizes: Sequence[int]) -> list[int]:
    out = []
    for n in reversed(sizes):
        out.append(position % n)
        position //= n
    return out[::-1]
