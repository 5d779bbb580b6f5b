"""Smaller value heads: the best product of value and output kernels of that size."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.decompose.attention import inner, join_heads, split_heads
from lrjax.linalg import weighted_spectrum
from lrjax.linalg.stack import dot
from lrjax.plan.batching import grouped
from lrjax.restructure.nested import products
from lrjax.restructure.sizes import Curve, Cut
from lrjax.restructure.structure import Module, finite, is_attention, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueHeads(Cut):
    """Cuts the value heads of attention, and with them what a cache keeps; needs statistics.

    Head by head, V O becomes (V L) (R O) with E|m (I - L R) O|^2 least over the values m that the
    attention has mixed, by the SVD of E[m m']^.5 O (MoDeGPT, arXiv:2408.09632; by head outputs:
    arXiv:2505.12942). One value head and all query heads that it serves share L and R. A bias of
    the output takes the mean of what is left out.
    """

    def fits(self, module: Module) -> bool:
        """A layer's attention with query, key, value and output."""
        return is_attention(module)

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Any
    ) -> tuple[Any, Sequence[Module]]:
        """The same attention with smaller values."""
        groups = config.kv_heads
        grams = {}
        for same in grouped(modules, _shape):
            found = _grams(*_moments(same), _outputs(same, config.query_heads), groups)
            errors = np.asarray(jnp.sum(_spectra(*found[:2]) ** 2, axis=1))  # of all heads together
            for i, m in enumerate(same):
                grams[m.path] = tuple(x[i] for x in found), errors[i]
        sizes = self.choose([_curve(m, grams[m.path][1]) for m in modules])
        rows, cols, means = zip(*(grams[m.path][0] for m in modules), strict=True)
        jobs = zip(modules, products(rows, cols, sizes), means, strict=True)
        new = [m if maps is None else _cut(m, config, *maps, mean) for m, maps, mean in jobs]
        layers = (m.layer for m in modules)
        return config.with_value_sizes(dict(zip(layers, sizes, strict=True))), new


def _shape(module: Module) -> tuple[int, ...]:
    return module.weights["output/kernel"].shape


def _curve(module: Module, spectrum: np.ndarray) -> Curve:
    """What every size loses: the energy of the components that are left out."""
    tail = np.cumsum(spectrum[::-1])[::-1]
    names = ("value/kernel", "value/bias", "output/kernel")
    cost = sum(module.weights[n].size for n in names if n in module.weights)
    own = module.gradients("output/kernel") is not None
    return Curve(np.append(tail[1:], 0), float(tail[0]), cost // len(spectrum), own)


def _moments(modules: Sequence[Module]) -> tuple[Array, Array]:
    """E[m m'] of the mixed values and E[m], which is zero where no bias can hold it."""
    found = [m.moments("output/kernel") for m in modules]
    gram = jnp.stack([f.second.astype(jnp.float32) for f in found])
    if any("output/bias" not in m.weights for m in modules) or any(f.mean is None for f in found):
        return gram, jnp.zeros(gram.shape[:2])
    return gram, jnp.stack([f.mean.astype(jnp.float32) for f in found])


def _outputs(modules: Sequence[Module], heads: int) -> tuple[Array, Array | None]:
    """Output kernels, transposed, head by head [b, heads, d, h], and the metric of outputs."""
    own = split_heads(jnp.swapaxes(stack(modules, "output/kernel"), 1, 2), heads)
    cols = [m.gradients("output/kernel") for m in modules]
    return own, None if any(c is None for c in cols) else jnp.stack(cols)  # pyright: ignore


@functools.partial(jax.jit, static_argnums=3)
def _grams(gram: Array, mean: Array, outputs: tuple[Array, Array | None], groups: int):
    """E[m m'] and O O' of every value head [b, groups, h, h], and the mean of m."""
    kernels, cols = outputs
    batch, heads, _, h = kernels.shape
    centred = gram - mean[:, :, None] * mean[:, None, :]
    blocks = centred.reshape(batch, heads, h, heads, h)
    blocks = jnp.moveaxis(jnp.diagonal(blocks, axis1=1, axis2=3), -1, 1)
    own = inner(kernels, None if cols is None else cols[:, None])
    share = lambda x: x.reshape(batch, groups, heads // groups, h, h).sum(2)
    return share(blocks), share(own), mean


@jax.jit
def _spectra(rows: Float[Array, "*S h h"], cols: Float[Array, "*S h h"]) -> Float[Array, "*S h"]:
    whole = jnp.broadcast_to(jnp.eye(rows.shape[-1]), rows.shape)
    return weighted_spectrum(whole, rows, cols)


def _cut(module: Module, config: Any, left: Array, right: Array, mean: Array) -> Module:
    """The module with values V L and outputs R O."""
    h = left.shape[1]
    weights = {p: jnp.asarray(w, jnp.float32) for p, w in module.weights.items()}
    values = split_heads(weights["value/kernel"], config.kv_heads)
    new = {"value/kernel": finite(module.path, join_heads(dot(values, left)))}
    if "value/bias" in weights:
        bias = weights["value/bias"].reshape(config.kv_heads, 1, h)
        new["value/bias"] = dot(bias, left).reshape(-1)
    many = config.query_heads // config.kv_heads
    outputs = weights["output/kernel"].reshape(config.query_heads, h, -1)
    cut = dot(jnp.repeat(right, many, axis=0), outputs)
    new["output/kernel"] = cut.reshape(-1, cut.shape[-1])
    if "output/bias" in weights:  # the mean is zero where none was kept
        mixed = dot(mean.reshape(config.query_heads, 1, h), jnp.repeat(left, many, axis=0))
        kept = dot(mixed, cut).sum((0, 1))
        new["output/bias"] = weights["output/bias"] + dot(mean, weights["output/kernel"]) - kept
    return module.replace(new)
