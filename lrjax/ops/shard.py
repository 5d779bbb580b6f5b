"""Shardings of the factors, derived from the sharding of the dense weight."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrjax.errors import ShapeError, message
from lrjax.formats.choice import Choice
from lrjax.formats.factored import Factored, abstract
from lrjax.formats.selection import Selection


def sharding(w: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """A tree like `w` of the shardings of its factors.

    The mesh axis of a dense dimension goes to the first of its labels (that it divides); labels
    that are summed, the ranks, are replicated.

    Args:
      w: array or factored weight, concrete or abstract.
      mesh: the device mesh.
      spec: the dense weight's partition, e.g. `PartitionSpec(None, "model")`.

    Raises:
      ShapeError: more entries in `spec` than the weight has dimensions.
    """
    if not isinstance(w, Factored):
        return NamedSharding(mesh, spec)
    if len(spec) > len(w.shape):
        got = f"{spec} for a weight of shape {w.shape}"
        todo = "Give the dense weight's partition."
        raise ShapeError(message(got=got, expected=f"{len(w.shape)} entries", todo=todo))
    own = getattr(w, "shardings", None)
    if own is not None:  # a weight of weights knows where its parts lie
        return own(lambda part, spec: sharding(part, mesh, spec), spec)
    leaves, treedef = jax.tree.flatten(abstract(w))
    views = [
        view
        for net in jax.tree.unflatten(treedef, leaves).networks()
        for x, ls in zip(net.operands, net.labels, strict=True)
        for view in _views(x, ls, net)
    ]
    if len(views) != len(leaves):
        got = f"{len(views)} operands for {len(leaves)} factors in {type(w).__name__}"
        todo = "List one operand a factor in `networks`, in the order of the fields."
        raise ShapeError(message(got=got, expected="one operand a factor", todo=todo))
    out = [
        NamedSharding(mesh, _spec(leaf.shape, view.shape, labels, _places(net, mesh, spec)))
        for leaf, (view, labels, net) in zip(leaves, views, strict=True)
    ]
    return jax.tree.unflatten(treedef, out)


def _views(x: Any, labels: tuple[int, ...], net: Any) -> list[tuple[Any, Any, Any]]:
    """The factors in an operand and their labels; those of a weight inside are replicated."""
    if isinstance(x, Selection):
        return []
    if isinstance(x, Factored):
        return [(leaf, (None,) * len(leaf.shape), net) for leaf in jax.tree.leaves(x)]
    return [(x.index, labels[: len(x.outs)], net)] if isinstance(x, Choice) else [(x, labels, net)]


def _places(net: Any, mesh: Mesh, spec: PartitionSpec) -> dict[int, Any]:
    """Mesh axis of each label."""
    sizes, where = net.sizes, {}
    for group, axis in zip(net.dims, spec, strict=False):
        if axis is None:
            continue
        names = axis if isinstance(axis, tuple) else (axis,)
        devices = math.prod(mesh.shape[name] for name in names)
        first = _first(group, sizes)
        # A block label inside another dimension would leave that one's shards in pieces.
        whole = all(first not in other or _first(other, sizes) == first for other in net.dims)
        if first is not None and whole and sizes[first] % devices == 0:
            where[first] = axis
    return where


def _first(group: Any, sizes: Any) -> int | None:
    return next((k for k in group if sizes[k] != 1), None)


def _spec(shape, view, labels, where) -> PartitionSpec:
    """The partition of a factor, whose axes are runs of the axes of its view."""
    axes, i = [], 0
    for n in shape:
        run, first = 1, i
        while (
            i < len(view)
            and run * view[i] <= n
            and (run < n or view[i] == 1)
            and (i == first or run < n)
        ):
            run *= view[i]
            i += 1
        inside = [where[k] for k in labels[first:i] if k in where]
        axes.append(inside[0] if inside and labels[first] in where else None)
    return PartitionSpec(*axes)
