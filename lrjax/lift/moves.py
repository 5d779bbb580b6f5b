"""What moving primitives do to a view: the static side of the rules for shapes and indexing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lrjax.lift import jaxprs
from lrjax.lift import view as views
from lrjax.lift.view import At, View

Move = Callable[[Any, View, Sequence[Any]], Sequence[View | None]]
"""`move(eqn, view of the first operand, indices of the others) -> views of the outputs`."""


def _transpose(eqn, view, _):
    return (views.transpose(view, eqn.params["permutation"]),)


def _reshape(eqn, view, _):
    if eqn.params.get("dimensions") is not None:
        return (None,)
    return (views.reshape(view, eqn.params["new_sizes"]),)


def _squeeze(eqn, view, _):
    return (views.squeeze(view, eqn.params["dimensions"]),)


def _broadcast(eqn, view, _):
    return (views.broadcast(view, eqn.params["shape"], eqn.params["broadcast_dimensions"]),)


def _same(eqn, view, _):
    return (view,) * len(eqn.outvars)


def _slice(eqn, view, _):
    p, out = eqn.params, view
    if p["strides"] is not None and any(s != 1 for s in p["strides"]):
        return (None,)
    for d, (a, b) in enumerate(zip(p["start_indices"], p["limit_indices"], strict=True)):
        out = out and views.cut(out, d, a, b - a)
    return (out,)


def _dynamic_slice(eqn, view, starts):
    out = view
    for d, (start, size) in enumerate(zip(starts, eqn.params["slice_sizes"], strict=True)):
        out = out and views.cut(out, d, start, size)
    return (out,)


def _split(eqn, view, _):
    axis, start, out = eqn.params["axis"], 0, []
    for size in map(int, eqn.params["sizes"]):
        out.append(views.cut(view, axis, start, size))
        start += size
    return out


def _rev(eqn, view, _):
    """The dims keep their roles, but their positions are no longer a run."""
    unknown = lambda axes: tuple(replace(a, start=At(None, many=True)) for a in axes)
    gone = eqn.params["dimensions"]
    dims = tuple(unknown(d) if k in gone else d for k, d in enumerate(view.dims))
    return (View(view.root, dims, view.fixed),)


def move_pick(eqn, view, indices):
    """`w[i]` by a gather with one index."""
    found, (start,) = jaxprs.lookup(eqn), indices
    if found is None:
        return (None,)
    if found.kept:
        return (views.cut(view, found.dim, start, 1),)
    return (views.index(view, found.dim, start),)


MOVES: dict[str, Move] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "rev": _rev,
    **dict.fromkeys(
        (
            "convert_element_type", "copy", "copy_p", "stop_gradient", "name", "pvary", "pcast",
            "reduce_precision", "sharding_constraint", "reshard", "device_put",
        ),
        _same,
    ),
}  # fmt: skip


def picks_one(eqn: Any) -> bool:
    """Whether a gather takes a single position of a single dim."""
    return eqn.invars[1].aval.shape == (1,) and jaxprs.lookup(eqn) is not None
