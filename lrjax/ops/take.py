"""Lookup of rows (an embedding) without the table."""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrjax.formats.choice import Choice
from lrjax.formats.contract import contract
from lrjax.formats.factored import Factored
from lrjax.formats.lazy import LazyArray, as_lazy
from lrjax.formats.network import Network, Unsupported
from lrjax.formats.selection import Selection, as_array

Mode = Literal["fill", "clip", "wrap", "promise_in_bounds"]

MOST_BLOCKS = 32
"""Blocks up to which many rows meet all of them in one product, and not copies of their own. For a
table of 8 blocks of rank 96 and width 384, 512 rows take 2 ms so, 30 ms as copies."""


def take(w: Any, indices: Any, axis: int = 0, mode: Mode = "fill", lazy: bool = False) -> Any:
    """`jnp.take(w, indices, axis, mode=mode)`.

    Args:
      w: array, factored or lazy array.
      indices: integers of any shape; negative ones count from the end (but in "clip").
      axis: the dimension that is looked up.
      mode: what happens out of range, as in `jnp.take`; "fill" gives NaN.
      lazy: keep the result lazy, as for a stack of layers or experts.

    Raises:
      Unsupported: the lookup is through a block label, or is to stay lazy along a concatenation
        of parts that are factored differently.
    """
    w = as_lazy(w)
    indices = jnp.asarray(indices)
    if not isinstance(w, LazyArray):
        return jnp.take(w, indices, axis=axis, mode=mode)
    axis = axis % w.ndim
    if w.axis is not None and w.axis != axis:
        parts = [take(part, indices, axis, mode, lazy=True) for part in w.terms]
        cut = w.axis if w.axis < axis else w.axis - 1 + indices.ndim
        y = LazyArray(tuple(parts), cut, w.name)
        return y if lazy else y.dense()
    n = w.shape[axis]
    index, valid = _in_range(indices, n, mode)
    if w.axis is None:
        looked = [_lookup(net, index, axis) for net in w.terms]
    else:
        looked = _across(w, index, axis)
    if lazy and not isinstance(looked, list):
        raise Unsupported("lazy lookup along a concatenation of differently factored parts")
    if lazy:
        nets = tuple(net if valid is None else _mask(net, valid, axis) for net, _ in looked)
        return LazyArray(nets, None, w.name)
    y = (_sum(looked) if isinstance(looked, list) else looked).astype(w.dtype)
    if valid is None:
        return y
    # Masking the result, not the index, keeps NaN out of the factors' gradients.
    valid = valid.reshape((1,) * axis + valid.shape + (1,) * (y.ndim - axis - valid.ndim))
    return jnp.where(valid, y, jnp.asarray(jnp.nan, y.dtype))


def _in_range(indices: Array, n: int, mode: Mode) -> tuple[Array, Array | None]:
    """Indices inside [0, n), and a mask of those that were valid where "fill" needs one."""
    if indices.dtype.itemsize < 4:  # bytes count neither the rows nor the offset of negative ones
        indices = indices.astype(jnp.int32)
    top = max(n - 1, 0)
    if mode == "clip":
        return jnp.clip(indices, 0, top), None
    if mode == "wrap":
        return jnp.mod(indices, n), None
    if jnp.issubdtype(indices.dtype, jnp.signedinteger):
        indices = jnp.where(indices < 0, indices + n, indices)
    if mode == "promise_in_bounds":
        return indices, None
    if mode != "fill":
        raise ValueError(f"got mode={mode!r}; expected fill, clip, wrap or promise_in_bounds")
    return jnp.clip(indices, 0, top), (indices >= 0) & (indices < n)


def _lookup(
    net: Network, index: Array, axis: int, *, every: bool = False
) -> tuple[Network, list[bool]]:
    """The network of the rows, and which operands were indexed.

    Those are the operands that vary along the dimension, or every one that has a label of it.
    """
    net = net.apart(axis)
    sizes = net.sizes
    group = [k for k in net.dims[axis] if sizes[k] != 1 or every]
    at = jnp.unravel_index(index, [sizes[k] for k in group]) if len(group) > 1 else (index,)
    first = net.fresh()
    rows = tuple(range(first, first + index.ndim))
    spread = [] if every else _spread(net, group, index.size)
    operands, labels, active = [], [], []
    for j, (x, ls) in enumerate(zip(net.operands, net.labels, strict=True)):
        met = [(k, i) for k, i in zip(group, at, strict=bool(group)) if k in ls]
        here = [(ls.index(k), i) for k, i in met if (j, k) not in spread]
        found = _chosen(x, ls, here, rows, net.dtype) if here and isinstance(x, Choice) else None
        if found is not None:
            x, ls = found
        elif here:
            x = x if isinstance(x, Factored) else as_array(x, net.dtype)
            x = jax.tree.map(functools.partial(_indexed, here=here), x)
            ls = (*rows, *(k for d, k in enumerate(ls) if d not in dict(here)))
        operands.append(x)
        labels.append(ls)
        active.append(bool(here))
    for k in dict.fromkeys(k for _, k in spread):
        number = at[group.index(k)]
        operands.append(jax.nn.one_hot(number, sizes[k], dtype=net.dtype))
        labels.append((*rows, k))
        active.append(True)
    if not group:  # a dimension of size one: every index is row 0
        operands.append(jnp.ones(index.shape, net.dtype))
        labels.append(rows)
        active.append(True)
    dims = (*net.dims[:axis], *((k,) for k in rows), *net.dims[axis + 1 :])
    return Network(tuple(operands), tuple(labels), dims), active


def _spread(net: Network, group: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Operands and block labels at which they are met whole: (operand, label).

    An operand that has the block of a row and not its place therein would be copied for every row.
    Rows that are more than the blocks are spread over them instead: zero but in their own.
    """
    sizes, found = net.sizes, []
    for j, (x, ls) in enumerate(zip(net.operands, net.labels, strict=True)):
        own = [k for k in group if k in ls]
        if len(own) != 1 or len(group) < 2 or isinstance(x, Choice | Selection | Factored):
            continue
        (k,) = own
        others = [other for i, other in enumerate(net.labels) if i != j]
        is_block = any(k in other and len({*group} & {*other}) > 1 for other in others)
        if is_block and sizes[k] <= min(MOST_BLOCKS, count) and len(ls) > 1:
            found.append((j, k))
    return found


def _indexed(x: Array, here: Sequence[tuple[int, Array]]) -> Array:
    """An operand, or a factor of one that is a weight, at an index on each of some axes."""
    axes = [d for d, _ in here]
    x = x.transpose([*axes, *(d for d in range(x.ndim) if d not in axes)])
    return x.at[tuple(i for _, i in here)].get(mode="promise_in_bounds")


def _chosen(x: Choice, ls, here, rows, dtype: Any) -> tuple[Any, tuple[int, ...]] | None:
    """A choice looked up by some output axes, by all of its input axes, or both."""
    count, own = len(x.outs), [(d, i) for d, i in here if d < len(x.outs)]
    picked = sorted(((d, i) for d, i in here if d >= count), key=lambda di: di[0])
    if picked and len(picked) != len(x.ins):
        return None
    rest = [d for d in range(count) if d not in [d for d, _ in own]]
    index = x.index.transpose([*(d for d, _ in own), *rest])
    if own:
        index = index.at[tuple(i for _, i in own)].get(mode="promise_in_bounds")
    found = Choice(index, x.ins)
    labels = (*(rows if own else ()), *(ls[d] for d in rest))
    if not picked:
        return found, (*labels, *ls[count:])
    number = jnp.zeros((), jnp.int32)
    for d, i in picked:
        number = number * x.ins[d - count] + i
    number = jnp.expand_dims(number, [number.ndim + k for k in range(len(rest))])
    chosen = found.number if own else found.number[(None,) * len(rows)]
    return (chosen == number.astype(chosen.dtype)).astype(dtype), (*rows, *(ls[d] for d in rest))


def _across(w: LazyArray, index: Array, axis: int) -> list[tuple[Network, list[bool]]] | Array:
    """Lookup along a concatenation: the rows' networks, or the rows where there are none.

    Parts that differ in nothing but the factors along the lookup (the runs of a padded table) are
    selected factor by factor, and contracted once.
    """
    sizes = [part.shape[axis] for part in w.terms]
    starts = list(itertools.accumulate(sizes, initial=0))[:-1]
    which = jnp.searchsorted(jnp.asarray(starts[1:]), index, side="right")
    places = [jnp.clip(index - low, 0, n - 1) for low, n in zip(starts, sizes, strict=True)]

    def select(xs: Sequence[Array], at: int) -> Array:
        y = xs[0]
        for j, x in enumerate(xs[1:], 1):
            here = which == j
            y = jnp.where(
                here.reshape((1,) * at + here.shape + (1,) * (y.ndim - at - here.ndim)), x, y
            )
        return y

    if any(part.axis is not None for part in w.terms):
        return select([take(p, i, axis) for p, i in zip(w.terms, places, strict=True)], axis)
    looked = [
        [_lookup(net, i, axis, every=True) for net in part.terms]
        for part, i in zip(w.terms, places, strict=True)
    ]
    if len({tuple(_form(*pair) for pair in nets) for nets in looked}) > 1:
        return select([_sum(nets) for nets in looked], axis)
    rows = []
    for nets in zip(*looked, strict=True):
        first, active = nets[0]
        columns = zip(*(net.operands for net, _ in nets), strict=True)
        operands = (select(xs, 0) if a else xs[0] for xs, a in zip(columns, active, strict=True))
        rows.append((Network(tuple(operands), first.labels, first.dims), active))
    return rows


def _form(net: Network, active: list[bool]) -> tuple[Any, ...]:
    """Equal for networks that differ in nothing but the values of their indexed operands."""
    rest = (x.shape if a else id(x) for x, a in zip(net.operands, active, strict=True))
    return (net.labels, net.dims, *rest)


def _sum(looked: Sequence[tuple[Network, list[bool]]]) -> Array:
    return functools.reduce(operator.add, (_finish(*pair) for pair in looked))


def _finish(net: Network, active: list[bool]) -> Array:
    """Contract; the indexed operands are the activations."""
    order = sorted(range(len(active)), key=lambda i: not active[i])
    y = contract(
        [(net.operands[i], net.labels[i]) for i in order],
        [k for group in net.dims for k in group],
        activations=sum(active),
    )
    return y.reshape(net.shape)


def _mask(net: Network, valid: Array, axis: int) -> Network:
    """NaN rows where the index was out of range."""
    labels = [k for d in range(axis, axis + valid.ndim) for k in net.dims[d]]
    return net.with_operand(jnp.where(valid, 1.0, jnp.nan).astype(net.dtype), labels)
