"""Operations that move, cut or join dense dimensions, and stay lazy on factored arrays."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrjax.errors import ShapeError, message
from lrjax.formats.choice import Choice
from lrjax.formats.factored import is_factored
from lrjax.formats.lazy import LazyArray, as_lazy
from lrjax.formats.network import Network, Unsupported
from lrjax.formats.selection import Selection, as_array


def transpose(w: Any, permutation: Sequence[int]) -> Any:
    """Permute the dense dimensions."""
    w = as_lazy(w)
    return w.transpose(permutation) if isinstance(w, LazyArray) else jnp.transpose(w, permutation)


def reshape(w: Any, shape: Sequence[int]) -> Any:
    """Another dense shape; one entry may be -1.

    Raises:
      ShapeError: the sizes differ.
      Unsupported: the new shape cuts a factor where it does not divide.
    """
    w = as_lazy(w)
    if not isinstance(w, LazyArray):
        return jnp.reshape(w, shape)
    shape = tuple(shape)
    if -1 in shape:
        rest = -math.prod(shape)
        shape = tuple(w.size // rest if n == -1 else n for n in shape)
    if math.prod(shape) != w.size:
        got = f"shape {shape} for {w.shape}"
        todo = "Check the new shape."
        raise ShapeError(message(path=w.name, got=got, expected=f"{w.size} elements", todo=todo))
    if shape == w.shape:
        return w
    if w.axis is None:
        return w.map(lambda net: net.reshape(shape))
    return _reshape_parts(w, shape)


def _reshape_parts(w: LazyArray, shape: tuple[int, ...]) -> LazyArray:
    """Reshape of a concatenation that leaves the cut dimension as it is."""
    k = w.axis
    assert k is not None
    before, n = math.prod(w.shape[:k]), w.shape[k]
    for axis, m in enumerate(shape):
        if m == n and math.prod(shape[:axis]) == before:
            parts = []
            for part in w.terms:
                cut = part.shape[k]
                parts.append(reshape(part, (*shape[:axis], cut, *shape[axis + 1 :])))
            return LazyArray(tuple(parts), axis, w.name)
    raise Unsupported("reshape that moves the cut of a concatenation")


def squeeze(w: Any, dimensions: Sequence[int]) -> Any:
    """Remove dimensions of size one."""
    w = as_lazy(w)
    gone = {d % w.ndim for d in dimensions}
    return reshape(w, [n for d, n in enumerate(w.shape) if d not in gone])


def broadcast_in_dim(w: Any, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> Any:
    """`jax.lax.broadcast_in_dim`: a repeated dimension costs one vector of ones.

    Raises:
      Unsupported: a concatenation is repeated along its cut.
    """
    w = as_lazy(w)
    shape, where = tuple(shape), tuple(broadcast_dimensions)
    if not isinstance(w, LazyArray):
        return lax.broadcast_in_dim(w, shape, where)
    if w.axis is not None:
        axis = where[w.axis]
        if w.shape[w.axis] != shape[axis]:
            raise Unsupported("broadcast along a concatenation")
        resized = lambda part: (*shape[:axis], part.shape[w.axis], *shape[axis + 1 :])
        parts = tuple(broadcast_in_dim(part, resized(part), where) for part in w.terms)
        return LazyArray(parts, axis, w.name)

    def one(net: Network) -> Network:
        own, dims, dtype = net.shape, [], net.dtype
        for d, n in enumerate(shape):
            source = where.index(d) if d in where else None
            if source is not None and own[source] == n:
                dims.append(net.dims[source])
            elif n == 1:
                dims.append(())
            else:
                label = net.fresh()
                net = net.with_operand(jnp.ones(n, dtype), (label,))
                dims.append((label,))
        return net.with_dims(dims)

    return w.map(one)


def slice_in_dim(w: Any, start: Any, size: int, axis: int, *, dynamic: bool = False) -> Any:
    """`size` consecutive entries along one dimension.

    Args:
      w: array, factored or lazy array.
      start: first index; may be traced if `dynamic`, and is then clamped into range.
      size: number of entries.
      axis: the dimension.
      dynamic: use `jax.lax.dynamic_slice_in_dim`.

    Raises:
      Unsupported: the slice cuts through a merged dimension or a concatenation.
    """
    w = as_lazy(w)
    if not isinstance(w, LazyArray):
        if dynamic:
            return lax.dynamic_slice_in_dim(w, start, size, axis)
        return lax.slice_in_dim(w, start, start + size, axis=axis)
    if size == w.shape[axis]:
        return w
    if w.axis is None:
        return w.map(lambda net: _slice(net, axis, start, size, dynamic))
    if axis != w.axis:
        parts = tuple(slice_in_dim(p, start, size, axis, dynamic=dynamic) for p in w.terms)
        return LazyArray(parts, w.axis, w.name)
    if dynamic:
        raise Unsupported("dynamic slice along a concatenation")
    parts, low = [], 0
    for part in w.terms:
        a, b = max(start, low), min(start + size, low + part.shape[axis])
        if a < b:
            parts.append(slice_in_dim(part, a - low, b - a, axis))
        low += part.shape[axis]
    if not parts:  # an empty slice
        return slice_in_dim(w.terms[0], 0, 0, axis)
    return parts[0] if len(parts) == 1 else LazyArray(tuple(parts), axis, w.name)


def _slice(net: Network, axis: int, start: Any, size: int, dynamic: bool) -> Network:
    def cut(net: Network, label: int, a: Any, n: int) -> Network:
        if dynamic:
            return net.map_label(label, lambda x, k: lax.dynamic_slice_in_dim(x, a, n, k))
        return net.map_label(label, lambda x, k: lax.slice_in_dim(x, a, a + n, axis=k))

    net = net.apart(axis)
    sizes = net.sizes
    labels = [k for k in net.dims[axis] if sizes[k] != 1]
    total = net.shape[axis]
    if not labels:
        raise Unsupported("empty slice of a dimension of size one")
    inner = math.prod(sizes[k] for k in labels[1:])
    if inner == 1:
        return cut(net, labels[0], start, size)
    if size == 1:  # one row: one index in every label
        at = jnp.clip(start, 0, total - 1) if dynamic else start
        index = (jnp if dynamic else np).unravel_index(at, [sizes[k] for k in labels])
        for label, i in zip(labels, index, strict=True):
            net = cut(net, label, i, 1)
        return net
    if dynamic:
        raise Unsupported("dynamic slice through a merged dimension")
    if start % inner == 0 and size % inner == 0:
        return cut(net, labels[0], start // inner, size // inner)
    first, last = start // inner, (start + size - 1) // inner
    if first == last:  # inside one block: cut the rest of the label run
        net = cut(net, labels[0], first, 1)
        return _slice(net, axis, start - first * inner, size, False)
    raise Unsupported("slice through a merged dimension")


def split(w: Any, sizes: Sequence[int], axis: int = 0) -> list[Any]:
    """Consecutive pieces of the given sizes along one dimension."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice_in_dim(w, a, n, axis) for a, n in zip(starts, sizes, strict=True)]


def concatenate(ws: Sequence[Any], axis: int = 0) -> Any:
    """Concatenation, lazy if any operand is; dense operands become part of it."""
    ws = [as_lazy(w) for w in ws]
    if not any(isinstance(w, LazyArray) for w in ws):
        return jnp.concatenate(ws, axis)
    axis = axis % ws[0].ndim
    lazies = [w if isinstance(w, LazyArray) else LazyArray.of(jnp.asarray(w)) for w in ws]
    lazies = [w for w in lazies if w.shape[axis]] or lazies[:1]
    name = next((w.name for w in lazies if w.name != "?"), "?")
    parts = [p for w in lazies for p in (w.terms if w.axis == axis else (w,))]
    return parts[0] if len(parts) == 1 else LazyArray(tuple(parts), axis, name)


def stack(ws: Sequence[Any], axis: int = 0) -> Any:
    """A new dimension over weights of one structure, e.g. layers.

    Factored weights stacked along axis 0 stay factored weights.

    Raises:
      Unsupported: the weights' networks differ in structure or in factor sizes.
    """
    alike = len({(jax.tree.structure(w), *_shapes(w)) for w in ws}) == 1
    if axis == 0 and alike and all(map(is_factored, ws)):
        return jax.tree.map(lambda *xs: jnp.stack(xs), *ws)
    ws = [as_lazy(w) for w in ws]
    if not any(isinstance(w, LazyArray) for w in ws):
        return jnp.stack(ws, axis)
    if not all(isinstance(w, LazyArray) and w.axis is None for w in ws):
        raise Unsupported("stack of unequal parts")
    rows = [[net.canonical() for net in w.terms] for w in ws]
    forms = {tuple((jax.tree.structure(net), *_shapes(net)) for net in row) for row in rows}
    if len(forms) != 1:
        raise Unsupported("stack of unequal parts")
    axis = axis % (ws[0].ndim + 1)

    def one(nets: Sequence[Network]) -> Network:
        label = nets[0].fresh()
        columns = list(zip(*(net.operands for net in nets), strict=True))
        alike = [isinstance(xs[0], Selection) for xs in columns]
        operands = tuple(
            xs[0] if a else jax.tree.map(lambda *leaves: jnp.stack(leaves), *xs)
            for xs, a in zip(columns, alike, strict=True)
        )
        dims = nets[0].dims
        labels = tuple(
            ls if a else (label, *ls) for ls, a in zip(nets[0].labels, alike, strict=True)
        )
        return Network(operands, labels, (*dims[:axis], (label,), *dims[axis:]))

    return LazyArray(tuple(map(one, zip(*rows, strict=True))), None, ws[0].name)


def _shapes(w: Any) -> tuple[Any, ...]:
    return tuple((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(w))


def unstack(w: Any) -> tuple[Any, Any]:
    """Operands to scan over, and a function from their slices to the slice of `w`.

    `jax.lax.scan` over the operands visits `w[0], w[1], ...` without leaving the factors.

    Raises:
      Unsupported: dimension 0 is merged from several labels, or a concatenation is cut along it.
    """
    w = as_lazy(w)
    if not isinstance(w, LazyArray):
        return w, lambda x: x
    if w.axis == 0:
        raise Unsupported("concatenation along the stacked dimension")
    if w.axis is not None:
        parts = [unstack(part) for part in w.terms]
        axis = w.axis - 1

        def rejoin(slices: Any) -> LazyArray:
            made = tuple(f(x) for (_, f), x in zip(parts, slices, strict=True))
            return LazyArray(made, axis, w.name)

        return [operands for operands, _ in parts], rejoin
    pairs = [_unstack(net) for net in w.terms]

    def rebuild(slices: Any) -> LazyArray:
        nets = tuple(f(x) for (_, f), x in zip(pairs, slices, strict=True))
        return LazyArray(nets, None, w.name)

    return [operands for operands, _ in pairs], rebuild


def _unstack(net: Network) -> tuple[list[Any], Any]:
    if len(net.dims[0]) != 1:
        raise Unsupported("the stacked dimension is merged from several labels")
    (label,) = net.dims[0]
    if any(label in group for group in net.dims[1:]):
        raise Unsupported("the stacked dimension shares a block label")
    where = [ls.index(label) if label in ls else None for ls in net.labels]
    # a choice among the entries themselves is written out; one in every entry is scanned as such
    whole = [
        x if k is None or _stacked(x, k) else as_array(x, net.dtype)
        for x, k in zip(net.operands, where, strict=True)
    ]
    scanned = [
        jax.tree.map(
            lambda leaf, k=k: jnp.moveaxis(leaf, k, 0), x.index if isinstance(x, Choice) else x
        )
        for x, k in zip(whole, where, strict=True)
        if k is not None
    ]
    labels = tuple(tuple(k for k in ls if k != label) for ls in net.labels)

    def rebuild(slices: Sequence[Any]) -> Network:
        moving = iter(slices)
        operands = []
        for x, k in zip(whole, where, strict=True):
            entry = x if k is None else next(moving)
            chosen = k is not None and isinstance(x, Choice)
            operands.append(Choice(entry, x.ins) if chosen else entry)
        return Network(tuple(operands), labels, net.dims[1:])

    return scanned, rebuild


def _stacked(x: Any, k: int) -> bool:
    """Whether axis k of an operand is one of its factors, and not of what they stand for."""
    return is_factored(x) or (isinstance(x, Choice) and k < len(x.outs))
