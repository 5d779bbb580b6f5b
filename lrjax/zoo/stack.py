"""Equal layers: one after the other, each with its own ranks, or scanned, stacked in one leaf.

Scanned layers are traced and compiled once, whatever the depth. The weights are the same: layer i
is ``layer_i/...``, or the i-th slice of ``layers/...``.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from lrjax import ops, trees
from lrjax.errors import ShapeError, message
from lrjax.formats import LowRank, Sum, Unsupported, is_factored
from lrjax.zoo.names import LAYER

M = TypeVar("M", bound=nn.Module)


def run(
    block: Callable[[str, int], nn.Module],
    x: Array,
    *shared: Any,
    each: Sequence[Mapping[str, Any]],
    scanned: bool,
) -> Array:
    """X <- block_i(x, *shared, **each[i]) for every layer i; for use in a compact method.

    Args:
        block: makes the block of the given name and index; that of index 0 is scanned.
        x: what flows through.
        *shared: further inputs of every block.
        each: what differs from block to block, numbers; its length is the depth.
        scanned: one traced block whose leaves are stacks.
    """
    call = lambda module, x, part, own: (module(x, *shared, **own), part)
    return _thread(block, call, x, None, each, scanned)[0]


def read(
    block: Callable[[str, int], nn.Module],
    x: Array,
    parts: Mapping[str, Any] | None,
    *shared: Any,
    each: Sequence[Mapping[str, Any]],
    scanned: bool,
) -> tuple[Array, Mapping[str, Any] | None]:
    """x, part_i <- block_i(x, part_i, *shared, **each[i]): :func:`run`, for blocks that remember.

    ``parts`` are those of a :class:`lrjax.zoo.cache.Cache`, or None, of which every part is None.
    """
    call = lambda module, x, part, own: module(x, part, *shared, **own)
    return _thread(block, call, x, parts, each, scanned)


def _thread(
    block: Callable[[str, int], nn.Module],
    call: Callable[[Any, Array, Any, Mapping[str, Any]], tuple[Array, Any]],
    x: Array,
    parts: Mapping[str, Any] | None,
    each: Sequence[Mapping[str, Any]],
    scanned: bool,
) -> tuple[Array, Mapping[str, Any] | None]:
    done = {}
    if not scanned:
        for i, own in enumerate(each):
            name = f"layer_{i}"
            x, done[name] = call(block(name, i), x, parts and parts[name], own)
        return x, parts and done

    def step(module: Any, x: Array, now: tuple[Any, Mapping[str, Any]]) -> tuple[Array, Any]:
        return call(module, x, *now)

    owns = {key: jnp.asarray([own[key] for own in each]) for key in each[0]}
    scan = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=len(each))
    x, done["layers"] = scan(block("layers", 0), x, (parts and parts["layers"], owns))
    return x, parts and done


def scan_layers(model: M, params: Any) -> tuple[M, dict[str, Any]]:
    """The same model with its layers scanned: their weights stacked, ranks padded with zeros.

    Raises:
        ShapeError: the layers differ, in shape or in format, or the model has no scanned form.
    """
    leaves: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for path, leaf in trees.flatten(params)[0].items():
        found = LAYER.search(path)
        if found:
            layers.setdefault(LAYER.sub("layers/", path), {})[int(found[1])] = leaf
        else:
            leaves[path] = leaf
    if not layers or not hasattr(model, "scanned"):
        got, todo = f"a {type(model).__name__}", "Use it as it is."
        raise ShapeError(message(got=got, expected="a stack of layers, each its own", todo=todo))
    depth = max((len(group) for group in layers.values()), default=0)
    for path, group in layers.items():
        if len(group) != depth:
            _unequal(path, f"it in {len(group)} of {depth} layers")
        leaves[path] = _stack(path, [group[i] for i in sorted(group)])
    return model.clone(scanned=True), unflatten_dict(leaves, sep="/")


def unroll_layers(model: M, params: Any) -> tuple[M, dict[str, Any]]:
    """The same model with its layers one after the other; ranks that are all zero are dropped."""
    leaves: dict[str, Any] = {}
    for path, leaf in trees.flatten(params)[0].items():
        head, found, tail = f"/{path}".rpartition("/layers/")
        if not found:
            leaves[path] = leaf
            continue
        for i in range(leaf.shape[0]):
            leaves[f"{head}/layer_{i}/{tail}".lstrip("/")] = _slice(leaf, i)
    return model.clone(scanned=False), unflatten_dict(leaves, sep="/")


def _stack(path: str, layers: Sequence[Any]) -> Any:
    try:
        stack = ops.stack(_padded(layers))
        if is_factored(stack) or isinstance(stack, jax.Array):
            return stack
    except (Unsupported, ValueError, TypeError):
        pass
    _unequal(path, " and ".join(sorted({f"{type(w).__name__} of shape {w.shape}" for w in layers})))


def _unequal(path: str, got: str) -> NoReturn:
    raise ShapeError(
        message(
            path=path,
            got=got,
            expected="layers of one shape and one format, which differ in rank at most",
            todo="Keep these layers unrolled, or factor them alike.",
        )
    )


def _padded(layers: Sequence[Any]) -> Sequence[Any]:
    if all(isinstance(w, LowRank) for w in layers):
        rank = max(w.rank for w in layers)
        return [_pad(w, rank) for w in layers]
    if all(isinstance(w, Sum) for w in layers):
        rows = [_padded(row) for row in zip(*(w.parts for w in layers), strict=True)]
        return [
            dataclasses.replace(w, parts=tuple(row[i] for row in rows))
            for i, w in enumerate(layers)
        ]
    return layers


def _pad(w: LowRank, rank: int) -> LowRank:
    stack, more = [(0, 0)] * (w.left.ndim - 2), (0, rank - w.rank)
    left = jnp.pad(w.left, [*stack, (0, 0), more])
    return dataclasses.replace(w, left=left, right=jnp.pad(w.right, [*stack, more, (0, 0)]))


def _slice(stack: Any, i: int) -> Any:
    layer = jax.tree.map(lambda x: x[i], stack)
    return _trimmed(layer)


def _trimmed(w: Any) -> Any:
    if isinstance(w, Sum):
        return dataclasses.replace(w, parts=tuple(map(_trimmed, w.parts)))
    if not isinstance(w, LowRank):
        return w
    used = np.any(np.asarray(w.left) != 0, axis=tuple(range(w.left.ndim - 1)))
    rank = max(1, int(np.max(np.nonzero(used)[0], initial=0)) + 1)
    return dataclasses.replace(w, left=w.left[..., :rank], right=w.right[..., :rank, :])
