"""The factored layers of a model under their published names."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrjax import ops, trees
from lrjax.errors import CheckpointError, message
from lrjax.formats import LowRank, Sum, is_factored
from lrjax.zoo.load import shapes_of
from lrjax.zoo.names import Tensor

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "bert")
"""Models whose published names are those of the reference library's own linear layers."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some outputs of a layer: y = x (left right + dense), either of which may be missing.

    Attributes:
        left: [in, r], or None.
        right: [r, out], or None.
        dense: [in, out], or None.
    """

    left: np.ndarray | None
    right: np.ndarray | None
    dense: np.ndarray | None

    @property
    def rank(self) -> int:
        """The rank of the pair; 0 without one."""
        return 0 if self.left is None else self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        if self.left is None or self.right is None:
            assert self.dense is not None
            return self.dense.shape[0], self.dense.shape[1]
        return self.left.shape[0], self.right.shape[1]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer of the published model, its outputs in segments: one, or query, key, value."""

    name: str
    segments: tuple[Segment, ...]


def leaves_of(model: Any, params: Any, *, densify: bool) -> dict[str, Any]:
    """The leaves by path, arrays and pairs alone.

    Raises:
        CheckpointError: a leaf is factored in another format and may not be densified, is not one
            of linear layers, or is not this model's.
    """
    leaves, shapes = trees.flatten(params)[0], shapes_of(model)
    kind = model.config.model_type
    for path in sorted(shapes.keys() | leaves.keys()):
        got = f"shape {tuple(leaves[path].shape)}" if path in leaves else "no such parameter"
        expected = f"shape {shapes[path].shape}" if path in shapes else "none in this model"
        if got != expected:
            _fail(path, got, expected, "Export the parameters with the model that they are of.")
    for path, leaf in leaves.items():
        plain = kind in FAMILIES and path.endswith("kernel") and "experts/" not in path
        if is_factored(leaf) and not (plain and _is_pair(leaf)):
            if not densify:
                got = f"a {type(leaf).__name__}" + ("" if plain else f" in a {kind}")
                expected = "low rank, or a sum of dense and low rank, in a linear layer of "
                todo = "Say densify=True to write this weight dense."
                _fail(path, got, expected + ", ".join(FAMILIES), todo)
            leaves[path] = ops.densify(leaf)
    return leaves


def factored(model: Any, leaves: Mapping[str, Any]) -> list[Layer]:
    """The layers with a factored leaf; the dense neighbours that are fused with it belong to it."""
    found: dict[str, dict[int, Tensor]] = {}
    for tensor in model.layout():
        own = found.setdefault(tensor.name, {})
        own[0 if tensor.part is None else tensor.part[1]] = tensor
    mixed = {n: own for n, own in found.items() if _any_factored(own, leaves)}
    return [
        Layer(name.removesuffix(".weight"), tuple(segment(own[k], leaves) for k in sorted(own)))
        for name, own in mixed.items()
    ]


def segment(tensor: Tensor, leaves: Mapping[str, Any]) -> Segment:
    """The factors behind a published tensor, or the part of it; of scanned layers, its own."""
    leaf = leaves[tensor.path]
    if not is_factored(leaf):
        return Segment(None, None, np.asarray(leaf)[tensor.at])
    parts = leaf.parts if isinstance(leaf, Sum) else (leaf,)
    pairs = [p for p in parts if isinstance(p, LowRank)]
    dense = [p for p in parts if not is_factored(p)]
    join = lambda arrays, axis: np.concatenate([np.asarray(a)[tensor.at] for a in arrays], axis)
    total = sum((jnp.asarray(p) for p in dense[1:]), jnp.asarray(dense[0])) if dense else None
    return Segment(
        join([p.left for p in pairs], 1),
        join([p.right for p in pairs], 0),
        None if total is None else np.asarray(total)[tensor.at],
    )


def remainder(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The leaves without their pairs: the dense part of a sum, zeros where there is none."""
    return {path: np.asarray(_without_pairs(leaf)) for path, leaf in leaves.items()}


def _without_pairs(leaf: Any) -> Any:
    if not is_factored(leaf):
        return leaf
    parts = leaf.parts if isinstance(leaf, Sum) else ()
    zeros = np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
    return sum((jnp.asarray(p) for p in parts if not is_factored(p)), zeros)


def _any_factored(tensors: Mapping[int, Tensor], leaves: Mapping[str, Any]) -> bool:
    return any(is_factored(leaves[t.path]) for t in tensors.values())


def _is_pair(leaf: Any) -> bool:
    parts = tuple(_parts(leaf))
    plain = all(not is_factored(p) or (type(p) is LowRank and p.order is None) for p in parts)
    whole = all(p.rows is None and p.cols is None for p in parts if isinstance(p, LowRank))
    return plain and whole and any(isinstance(p, LowRank) for p in parts)


def _parts(leaf: Any) -> Iterator[Any]:
    yield from leaf.parts if isinstance(leaf, Sum) else (leaf,)


def _fail(path: str, got: str, expected: str, todo: str) -> None:
    raise CheckpointError(message(path=path, got=got, expected=expected, todo=todo))
