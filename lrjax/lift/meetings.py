"""Where weights meet activations: products, lookups, convolutions; each makes a site."""

from collections.abc import Callable, Sequence
from typing import Any

from lrjax.lift import jaxprs
from lrjax.lift.interpreter import Place
from lrjax.lift.report import UseKind
from lrjax.lift.sites import Piece, Roles, Side, Site, roles, side
from lrjax.lift.values import Val
from lrjax.lift.view import At, Axis, View

Meeting = Callable[[Any, Any, list[Val], Place, Place], Sequence[Val] | None]
"""`meeting(reader, eqn, operands, place, scope) -> outputs`, or None if it is something else."""

Cut = tuple[int, int, int]


def _dot_general(reader: Any, eqn: Any, vals: list[Val], at: Place, scope: Place):
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    contracted, batched = (lc, rc), (lb, rb)
    weights = [k for k in (0, 1) if vals[k].weight or vals[k].parts]
    if len(weights) == 2 and not all(v.fixed for v in vals):
        weights = [k for k in weights if vals[k].fixed]  # the other is an activation
    free = [
        [d for d in range(len(v.view.dims)) if d not in c and d not in b]
        for v, c, b in zip(vals, contracted, batched, strict=True)
    ]
    outs = []
    for k in weights:
        w, x = vals[k], vals[1 - k]
        first = len(lb) + (len(free[0]) if k == 1 else 0)
        rows = list(zip(contracted[k], contracted[1 - k], strict=True))
        batch = [(d, e, i) for i, (d, e) in enumerate(zip(batched[k], batched[1 - k], strict=True))]
        cols = [(d, first + i) for i, d in enumerate(free[k])]
        for part, x_cut, y_cut in _parts(w, rows, cols):
            kind = roles(part.view, rows, batch, cols)
            outs.append(_site(reader, eqn, at, scope, UseKind.DOT, k, part, kind, x, x_cut, y_cut))
    return _output(reader, eqn, vals, outs) if outs else None


def _parts(w: Val, rows, cols) -> list[tuple[Val, Cut | None, Cut | None]]:
    """The weight, or the weights of a concatenation, each with its cut of activation or output."""
    if not w.parts:
        return [(w, None, None)]
    found, start = [], 0
    for part in w.parts:
        size = part.view.shape[w.axis]
        x = next(((a, start, size) for d, a in rows if d == w.axis), None)
        y = next(((a, start, size) for d, a in cols if d == w.axis), None)
        start += size
        if part.weight:
            found.append((part, x, y))
    return found


def _gather(reader: Any, eqn: Any, vals: list[Val], at: Place, scope: Place):
    w, index = vals
    found, numbers = jaxprs.lookup(eqn), eqn.params["dimension_numbers"]
    if not w.weight or found is None or numbers.operand_batching_dims:
        return None
    k, shape, out = found.dim, w.view.shape, eqn.outvars[0].aval.shape
    offsets = list(numbers.offset_dims)
    if found.kept:
        offsets.pop(k)
    rest = [d for d in range(len(shape)) if d != k]
    cols = list(zip(rest, offsets, strict=True))
    if len(rest) > 1 and len(w.view.dims[k]) == 1:  # a stack, looked up by token: still a weight
        dims: list[tuple[Axis, ...]] = [(Axis(None, 0, n),) for n in out]
        for d, position in cols:
            dims[position] = w.view.dims[d]
        (axis,) = w.view.dims[k]
        chosen = Axis(axis.dim, axis.stride, 1, At(None, many=True))
        return [Val(View(w.view.root, tuple(dims), (*w.view.fixed, chosen)), False)]
    kind = roles(w.view, [(k, 0)], [], cols)
    how = (*scope, found.column)
    site = _site(
        reader, eqn, at, how, UseKind.LOOKUP, 0, w, kind, index, None, None, (shape[k],)
    )  # fmt: skip
    return _output(reader, eqn, vals, [site])


def _conv(reader: Any, eqn: Any, vals: list[Val], at: Place, scope: Place):
    """The activation is the patches [batch, *out, group, in, *window]: see `patches`."""
    x, w = vals
    if not w.weight:
        return None
    p = eqn.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    o, i, *window = numbers.rhs_spec
    out = eqn.outvars[0].aval.shape
    lead = len(window) + 1
    rows = [(i, lead + 1), *((d, lead + 2 + j) for j, d in enumerate(window))]
    rows.sort()
    kind = roles(w.view, rows, [], [(o, numbers.out_spec[1])])
    if p["batch_group_count"] != 1:
        kind = Roles(kind.rows, kind.cols, kind.stack, None)
    shape = w.view.shape
    patch = (
        out[numbers.out_spec[0]], *(out[d] for d in numbers.out_spec[2:]), groups,
        shape[i], *(shape[d] for d in window),
    )  # fmt: skip
    how = ("patches", shape[i], tuple(shape[d] for d in window), *_window(p))
    site = _site(reader, eqn, at, (*scope, how), UseKind.CONV, 1, w, kind, x, None, None, patch)
    return _output(reader, eqn, vals, [site])


def _window(p: dict[str, Any]) -> tuple[Any, ...]:
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    return (*(p[name] for name in names), str(p["dimension_numbers"]))


def _ragged(reader: Any, eqn: Any, vals: list[Val], at: Place, scope: Place):
    """Experts by runs of tokens: rows and columns are known, statistics are not taken."""
    x, w, _ = vals
    if not w.weight:
        return None
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (xc, wc), (xb, wb) = numbers.dot_dimension_numbers
    group = tuple(numbers.rhs_group_dimensions)
    batch = [(d, e, 0) for d, e in zip(wb, xb, strict=True)] + [(d, 0, 0) for d in group]
    free = [d for d in range(len(w.view.dims)) if d not in wc and d not in wb and d not in group]
    first = len(eqn.outvars[0].aval.shape) - len(free)
    cols = [(d, first + i) for i, d in enumerate(free)]
    kind = roles(w.view, list(zip(wc, xc, strict=True)), batch, cols)
    kind = Roles(kind.rows, kind.cols, kind.stack, None)
    site = _site(reader, eqn, at, scope, UseKind.DOT, 1, w, kind, x, None, None)
    return _output(reader, eqn, vals, [site])


def _site(
    reader: Any,
    eqn: Any,
    at: Place,
    scope: Any,
    use: UseKind,
    operand: int,
    w: Val,
    kind: Roles,
    x: Val,
    x_cut: Cut | None,
    y_cut: Cut | None,
    x_shape: Sequence[int] | None = None,
) -> Site:
    left = right = key = None
    y_axes: tuple[int, ...] = ()
    stack: tuple[Piece, ...] = ()
    if kind.pieces is not None and kind.rows and not x.fixed:
        stack = kind.pieces["stack"]
        shape = x.view.shape if x_shape is None else x_shape
        left = side(shape, kind.pieces["rows"], stack, "x", x_cut)
        right = side(eqn.outvars[0].aval.shape, kind.pieces["cols"], stack, "y", y_cut)
        y_axes = tuple(dict.fromkeys(p.y for p in kind.pieces["cols"] if p.y is not None))
        if left is not None and right is not None:
            key = _key(x, left, kind.pieces["rows"], stack, use, scope)
        else:
            left = right = None
    site = Site(
        at, w.view.root, use, operand, eqn.primitive.name, reader.source(),
        kind.rows, kind.cols, kind.stack, stack, left, right, y_axes, key,
        eqn.outvars[0].aval.dtype,
    )  # fmt: skip
    reader.sites.append(site)
    return site


def _key(
    x: Val, left: Side, rows: Sequence[Piece], stack: Sequence[Piece], use: UseKind, scope: Any
):
    """What makes two activations the same: the root, and which of its axes are rows and stack.

    Tokens may come in any order, for only sums over them are kept.
    """
    view = x.view
    partial = any(s or n != w for s, n, w in zip(
        left.starts, (left.split[k] for k in left.width), left.wholes, strict=True
    ))  # fmt: skip
    how = tuple((p.axis.start, p.axis.size, p.whole) for p in stack)
    common = (use, view.root, frozenset(view.fixed), how, left.cut, scope)
    common += ((left.starts, left.wholes) if partial else (),)
    if use is not UseKind.DOT:
        return (*common, view.dims)
    order = tuple(dict.fromkeys(p.x for p in rows))
    plain = [(p.x, p.turn) for p in rows] == [
        (a, p.turn) for a in order for p in sorted(rows, key=lambda p: p.turn) if p.x == a
    ]
    axes = tuple(a for d in order if d is not None for a in view.dims[d])
    lead = tuple(view.dims[p.x] for p in stack if p.x is not None)
    used = {p.x for p in (*rows, *stack)}
    tokens = frozenset(a for d, g in enumerate(view.dims) if d not in used for a in g)
    return (*common, axes, lead, tokens, () if plain else (left.split, left.width))


def _output(reader: Any, eqn: Any, vals: list[Val], sites: Sequence[Site]) -> list[Val]:
    """The product is a value of its own; its site is known by it."""
    params = jaxprs.frozen(eqn.params)
    key = None if params is None else (eqn.primitive.name, params, tuple(v.view for v in vals), 0)
    out = reader.fresh(eqn.outvars[0].aval.shape, all(v.fixed for v in vals), key)
    if len(sites) == 1:
        reader.outputs[out.view.root] = sites[0]
    return [out]


MEETINGS: dict[str, Meeting] = {
    "dot_general": _dot_general,
    "gather": _gather,
    "conv_general_dilated": _conv,
    "ragged_dot_general": _ragged,
}
