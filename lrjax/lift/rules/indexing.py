"""Slices and lookups."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lrjax import ops
from lrjax.formats.lazy import LazyArray
from lrjax.formats.network import Unsupported
from lrjax.lift import jaxprs
from lrjax.lift.rules.registry import ROWS, Context, Rules, is_lazy

RULES = Rules()

_MODES: dict[str, Any] = {
    "FILL_OR_DROP": "fill",
    "CLIP": "clip",
    "PROMISE_IN_BOUNDS": "promise_in_bounds",
}


@RULES.on("slice")
def _slice(ctx: Context, eqn: Any, w: Any):
    del ctx
    p = eqn.params
    strides = p["strides"] or (1,) * w.ndim
    limits = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for d, (start, stop, stride) in enumerate(limits):
        if stride == 1:
            w = ops.slice_in_dim(w, start, stop - start, d)
        elif w.axis == d:
            raise Unsupported("strided slice of a concatenation")
        else:
            w = w.map(lambda net, d=d, cut=(start, stop, stride): _strided(net, d, cut))
    return (w,)


def _strided(net: Any, dim: int, cut: tuple[int, int, int]) -> Any:
    net = net.apart(dim)
    labels = [k for k in net.dims[dim] if net.sizes[k] != 1]
    if len(labels) != 1:
        raise Unsupported("strided slice of a merged dim")
    return net.map_label(labels[0], lambda x, axis: lax.slice_in_dim(x, *cut, axis=axis))


@RULES.on("dynamic_slice")
def _dynamic_slice(ctx: Context, eqn: Any, w: Any, *starts: Any):
    del ctx
    if any(is_lazy(s) for s in starts):
        raise Unsupported("an index that is factored")
    for d, (start, size) in enumerate(zip(starts, eqn.params["slice_sizes"], strict=True)):
        if size != w.shape[d]:
            w = ops.slice_in_dim(w, start, size, d, dynamic=True)
    return (w,)


@RULES.on("gather")
def _gather(ctx: Context, eqn: Any, w: Any, indices: Any):
    """Whole rows by one index: `w[..., indices, ...]`.

    One index, or a stacked axis (its label is in every operand), leaves a weight; token ids make an
    activation, at the cost of a row.  As many indices as rows, or columns by index, may be either:
    a permuted weight or an activation.
    """
    del ctx
    found, numbers = jaxprs.lookup(eqn), eqn.params["dimension_numbers"]
    if is_lazy(indices) or found is None:
        raise Unsupported("a gather of other than whole rows along one dim")
    k, i = found.dim, indices[..., found.column]
    mode = _MODES[eqn.params["mode"].name]
    if numbers.operand_batching_dims:
        y = _batched(w, i, k, mode, numbers)
        rows = list(range(i.ndim))
        rest = list(range(i.ndim, y.ndim))
    else:
        weight = i.ndim == 0 or _stacked(w, k)
        either = not weight and i.ndim == 1 and (k > 0 or i.size == w.shape[k]) and w.axis is None
        y = ops.take(w, i, axis=k, mode=mode, lazy=weight or either)
        if either:
            y = dataclasses.replace(y, name=w.name.removesuffix(ROWS) + ROWS)
        rows = list(range(k, k + i.ndim))  # take leaves the indices' dims at k
        rest = [d for d in range(y.ndim) if d not in rows]
    if found.kept:
        at = sum(d not in numbers.operand_batching_dims for d in range(k))
        y = ops.reshape(y, (*y.shape, 1))
        rest.insert(at, y.ndim - 1)
    batch, offsets = iter(rows), iter(rest)
    perm = [next(offsets if d in numbers.offset_dims else batch) for d in range(y.ndim)]
    return (ops.transpose(y, perm),)


def _batched(w: Any, index: Any, k: int, mode: Any, numbers: Any) -> Any:
    """One lookup for each position of a dim that weight and indices share: [*indices, *rest]."""
    if len(numbers.operand_batching_dims) != 1:
        raise Unsupported("a gather over several batches")
    (b,), (e,) = numbers.operand_batching_dims, numbers.start_indices_batching_dims
    w = ops.transpose(w, [b, *(d for d in range(w.ndim) if d != b)])
    operands, slice_of = ops.unstack(w)
    axis = k - (k > b)
    look = lambda x, i: jnp.moveaxis(
        ops.take(slice_of(x), i.reshape(-1), axis=axis, mode=mode), axis, 0
    )
    y = jax.vmap(look)(operands, jnp.moveaxis(index, e, 0))
    moved = [n for d, n in enumerate(index.shape) if d != e]
    return jnp.moveaxis(y.reshape((y.shape[0], *moved, *y.shape[2:])), 0, e)


def _stacked(w: Any, dim: int) -> bool:
    if w.axis is not None or w.ndim < 3:
        return False
    return all(
        len(net.dims[dim]) == 1 and all(net.dims[dim][0] in ls for ls in net.labels)
        for net in w.terms
    )


@RULES.on("select_n")
def _select_n(ctx: Context, eqn: Any, which: Any, *cases: Any):
    """One predicate for the whole weight, or one a row or column against zeros."""
    if is_lazy(which) or len(cases) != 2:
        raise Unsupported("a choice by a factored predicate")
    which = ctx.compact(eqn, 0, which)
    # A case that is zero everywhere adds nothing.
    live = {j: w for j, w in enumerate(cases) if is_lazy(w) or ctx.constant(eqn, 1 + j) != 0}
    if which.size == 1:
        return (_choose(which.reshape(()).astype(bool), live),)
    if not all(is_lazy(w) for w in live.values()):
        raise Unsupported("a choice by element between a factored and a dense array")
    parts = [ops.multiply(w, (which == bool(j)).astype(w.dtype)) for j, w in live.items()]
    return (functools.reduce(ops.add, parts),)


def _choose(which: Any, cases: dict[int, Any]) -> Any:
    """One of two by a scalar: factor by factor if they are alike, else the other one times zero."""
    no, yes = cases.get(0), cases.get(1)
    if isinstance(no, LazyArray) and isinstance(yes, LazyArray):
        same = lambda w: (jax.tree.structure(w), [a.shape for a in jax.tree.leaves(w)])
        yes = dataclasses.replace(yes, name=no.name)
        if same(no) == same(yes):
            return jax.tree.map(lambda a, b: jnp.where(which, b, a), no, yes)
    # Every factor of the term not chosen is zero, so that no NaN of it gets through.
    keep = lambda w, chosen: jax.tree.map(lambda a: jnp.where(chosen, a, jnp.zeros_like(a)), w)
    parts = [keep(w, which if j else ~which) for j, w in cases.items()]
    return functools.reduce(ops.add, parts)
