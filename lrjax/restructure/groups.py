"""Fewer key and value heads, out of those that are there: grouped-query attention.

Heads side by side are merged into one that has a basis of its own (`lrjax.decompose.attention`),
and the queries and outputs of those they served take up the difference; plain averaging
(arXiv:2305.13245) needs training to be of use. The result is an ordinary smaller checkpoint.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrjax.decompose.attention import merge_keys, merge_rotated_keys, merge_values
from lrjax.errors import RankError, RuleError, message
from lrjax.restructure.heads import Heads, heads_of
from lrjax.restructure.structure import Module, Structure, finite, is_attention

_MERGE_ROTATED, _MERGE_KEYS, _MERGE_VALUES = (
    jax.jit(merge, static_argnums=2) for merge in (merge_rotated_keys, merge_keys, merge_values)
)


@dataclasses.dataclass(frozen=True)
class GroupHeads(Structure):
    """Merges the key and value heads of all layers into ``groups`` heads of the old size.

    Attributes:
        groups: a divisor of the number of key and value heads.
        averaged: the mean of the heads instead, queries and outputs as they were: for comparison.
    """

    groups: int
    averaged: bool = False

    def fits(self, module: Module) -> bool:
        """Attention of a layer, with kernels for query, key, value and output."""
        return is_attention(module)

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Any
    ) -> tuple[Any, Sequence[Module]]:
        """The same modules with fewer heads of keys and values."""
        views = [heads_of(config, module, "GroupHeads") for module in modules]
        self._check(config, views)
        new = [self._merged(view) for view in views]
        return dataclasses.replace(config, num_key_value_heads=self.groups), new

    def _check(self, config: Any, views: Sequence[Heads]) -> None:
        path = views[0].module.path
        if not hasattr(config, "num_key_value_heads"):
            got, expected = f"a {type(config).__name__}", "an architecture with grouped heads"
            todo = "Shrink its cache by LatentKV."
            raise RuleError(message(path=path, got=got, expected=expected, todo=todo))
        if len(views) != config.depth:
            got, expected = f"{len(views)} of {config.depth} layers", "all: they have one number"
            todo = "Match all of them: 'layer_*/attention'."
            raise RuleError(message(path=path, got=got, expected=expected, todo=todo))
        if self.groups < 1 or config.kv_heads % self.groups:
            got, expected = f"{self.groups} groups", f"a divisor of {config.kv_heads} heads"
            raise RankError(message(path=path, got=got, expected=expected, todo="Choose one."))
        if views[0].normed and not self.averaged:
            got, expected = "keys that are normalised head by head", "keys that are products alone"
            todo = "Shrink its cache by LatentKV."
            raise RuleError(message(path=path, got=got, expected=expected, todo=todo))

    def _merged(self, view: Heads) -> Module:
        if self.averaged:
            leaves = {
                f"{kind}/{name}": self._mean(view, kind, name)
                for kind in ("key", "value")
                for name in ("kernel", *(["bias"] if view.has_bias(kind) else []))
            }
        else:
            leaves = _keys(view, self.groups) | _values(view, self.groups)
        return _with(view.module, leaves)

    def _mean(self, view: Heads, kind: str, name: str) -> Array:
        leaf = jnp.asarray(view.module.weights[f"{kind}/{name}"], jnp.float32)
        heads = leaf.reshape(*leaf.shape[:-1], self.groups, view.groups // self.groups, -1)
        return heads.mean(-2).reshape(*leaf.shape[:-1], -1)


def _keys(view: Heads, groups: int) -> dict[str, Array]:
    (query, gram), (key, own) = view.affine("query"), view.affine("key")
    merge = _MERGE_ROTATED if view.rotated else _MERGE_KEYS
    made = merge(query, key, groups, query_gram=gram, key_gram=own)
    return view.replace_affine("key", made.shared) | view.replace_affine("query", made.own)


def _values(view: Heads, groups: int) -> dict[str, Array]:
    value, gram = view.affine("value")
    made = _MERGE_VALUES(value, view.of("output"), groups, gram=gram)
    return view.replace_affine("value", made.shared) | view.replace("output", made.own)


def _with(module: Module, leaves: dict[str, Array]) -> Module:
    """The module with other leaves, whose shapes may differ, in the dtype of the old."""
    dtype = module.weights["key/kernel"].dtype
    new = {p: finite(f"{module.path}/{p}", leaf).astype(dtype) for p, leaf in leaves.items()}
    return dataclasses.replace(module, weights={**module.weights, **new})
