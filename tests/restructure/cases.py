"""Tiny models of the zoo with statistics, and inputs that calibration has not seen."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import calibrate, trees, zoo

GOLDENS = pathlib.Path(__file__).parents[1] / "zoo" / "goldens"


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its parameters, what they saw, and inputs held out."""

    model: Any
    params: Any
    stats: Any
    unseen: Any

    @property
    def leaves(self) -> dict[str, Any]:
        return trees.flatten(self.params)[0]

    def outputs(self, model: Any = None, params: Any = None) -> np.ndarray:
        params = self.params if params is None else params
        return np.asarray(_apply(model or self.model, params, self.unseen))

    def loss(self, model: Any, params: Any) -> float:
        """KL of the predictions on held-out inputs from those of the whole model."""
        whole, cut = (jax.nn.log_softmax(x) for x in (self.outputs(), self.outputs(model, params)))
        return float((jnp.exp(whole) * (whole - cut)).mean())


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: Any, params: Any, inputs: Any) -> Any:
    return model.apply({"params": params}, inputs)


@functools.cache
def case(name: str) -> Case:
    model, params = zoo.load(GOLDENS / name)
    if name == "llama":
        # Weights of more than the initial scale, so that attention and MLP are far from linear.
        params = trees.map_weights(lambda x: 4 * x if x.ndim == 2 and len(x) < 60 else x, params)
    rng = np.random.default_rng(0)
    if name == "vit":
        draw = lambda n: jnp.asarray(rng.normal(size=(n, 3, 16, 16)), jnp.float32)
    else:
        draw = lambda n: jnp.asarray(rng.integers(1, 61, (n, 20)))
    seen, unseen = draw(64), draw(8)
    return Case(model, params, statistics(model, params, seen), unseen)


def statistics(model: Any, params: Any, seen: Any, *only: str) -> Any:
    """What every kernel sees, or the kernels of some globs."""
    apply = lambda p, batch: model.apply({"params": p}, batch)
    paths = trees.paths(params)
    globs = only or (
        "**/key/kernel",
        "**/output/kernel",
        "**/up/kernel",
        "**/down/kernel",
        "head/*",
    )
    select = [g for g in globs if any(trees.match(g, p) for p in paths)]
    return calibrate(apply, params, [seen], gradients=False, select=select)


def count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
