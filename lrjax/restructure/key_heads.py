"""Smaller query and key heads: rotated pairs chosen, or the best product where none are rotated."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.decompose.attention import affine, affine_gram, inner, join_heads, split_heads
from lrjax.errors import RuleError, message
from lrjax.linalg import weighted_spectrum
from lrjax.linalg.stack import dot
from lrjax.restructure.nested import products
from lrjax.restructure.sizes import Curve, Cut
from lrjax.restructure.structure import Module, finite, is_attention

KINDS = ("query", "key")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryKeyHeads(Cut):
    """Cuts the query and key heads of attention, and with them what a cache keeps.

    Where queries and keys are rotated, pairs of columns stay or leave as they are: those of the
    largest E|q|^2 E|k|^2, the energy of their part of the scores (MoDeGPT, arXiv:2408.09632), each
    key head choosing its own. Where they are not, Q K' becomes the best product of the new size:
    the SVD of S^.5 Q K' S^.5 (arXiv:2505.12942). The scores keep the scale of the old heads. Needs
    statistics.

    Raises:
        RuleError: queries and keys are normalised, whose norm is of all columns.
    """

    def fits(self, module: Module) -> bool:
        """A layer's attention with query, key, value and output."""
        return is_attention(module)

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Any
    ) -> tuple[Any, Sequence[Module]]:
        """The same attention with smaller queries and keys."""
        for m in modules:
            if "key_norm" in m.parts:
                got, expected = "normalised queries and keys", "attention without these norms"
                todo = "Cut the value heads or the MLPs of this model."
                raise RuleError(message(path=m.path, got=got, expected=expected, todo=todo))
        grams = [_grams(m, config) for m in modules]
        spectra = [_pairs(*g) if config.rotated else _spectrum(*g) for g in grams]
        sizes = self.choose([_curve(m, s, config) for m, s in zip(modules, spectra, strict=True)])
        layers = {m.layer: size for m, size in zip(modules, sizes, strict=True)}
        if not config.rotated:
            maps = products([q for q, _ in grams], [k for _, k in grams], sizes)
            new = [
                m if own is None else _project(m, config, *own)
                for m, own in zip(modules, maps, strict=True)
            ]
            return config.with_key_sizes(layers), new
        chosen = {
            m.layer: np.sort(np.argsort(-own, axis=1, kind="stable")[:, : size // 2], axis=1)
            for m, size, own in zip(modules, sizes, spectra, strict=True)
            if size < 2 * own.shape[1]
        }
        new = [_select(m, config, chosen[m.layer]) if m.layer in chosen else m for m in modules]
        return config.with_key_sizes(layers, key_pairs=_named(config, chosen)), new


def _grams(module: Module, config: Any) -> tuple[Array, Array]:
    """E[q q'] and E[k k'] of every key head [groups, h, h], q of all query heads it serves."""
    seen = module.moments("key/kernel")
    second, mean = seen.second.astype(jnp.float32), seen.mean
    heads = []
    for kind, count in zip(KINDS, (config.query_heads, config.kv_heads), strict=True):
        kernels = split_heads(jnp.asarray(module.weights[f"{kind}/kernel"], jnp.float32), count)
        bias, gram = module.weights.get(f"{kind}/bias"), second
        if bias is not None:
            kernels = affine(kernels, jnp.asarray(bias, jnp.float32).reshape(count, -1))
            gram = affine_gram(second, mean)
            if kind == "key" and not config.rotated:
                # A softmax does not see what all keys have in common.
                gram = gram - gram[:, -1:] * gram[-1:]
        heads.append(inner(kernels, gram))
    q, k = heads
    return q.reshape(len(k), -1, *q.shape[1:]).sum(1), k


def _pairs(q: Array, k: Array) -> np.ndarray:
    """E|q|^2 E|k|^2 of every pair of every key head [groups, h / 2]."""
    columns = (jnp.diagonal(x, axis1=1, axis2=2) for x in (q, k))
    energies = (np.asarray(x).reshape(len(x), 2, -1).sum(1) for x in columns)
    return functools.reduce(np.multiply, energies)


@jax.jit
def _spectrum(q: Float[Array, "g h h"], k: Float[Array, "g h h"]) -> Float[Array, "g h"]:
    """The energies of the components of Q K' of every head."""
    return weighted_spectrum(jnp.broadcast_to(jnp.eye(q.shape[-1]), q.shape), q, k) ** 2


def _curve(module: Module, energies: Any, config: Any) -> Curve:
    """What every size loses: the energy of the scores' parts that are left out."""
    falling = -np.sort(-np.asarray(energies, np.float64), axis=1)
    tail = np.cumsum(falling.sum(0)[::-1])[::-1]
    step = 2 if config.rotated else 1
    names = (f"{kind}/{leaf}" for kind in KINDS for leaf in ("kernel", "bias"))
    cost = sum(module.weights[n].size for n in names if n in module.weights)
    return Curve(np.append(tail[1:], 0), float(tail[0]), cost // (step * len(tail)), step=step)


def _project(module: Module, config: Any, left: Array, right: Array) -> Module:
    """Queries Q L and keys K R'."""
    many = config.query_heads // config.kv_heads
    maps = (jnp.repeat(left, many, axis=0), jnp.swapaxes(right, 1, 2))
    new = {}
    for kind, own in zip(KINDS, maps, strict=True):
        kernels = split_heads(jnp.asarray(module.weights[f"{kind}/kernel"], jnp.float32), len(own))
        new[f"{kind}/kernel"] = finite(f"{module.path}/{kind}", join_heads(dot(kernels, own)))
        bias = module.weights.get(f"{kind}/bias")
        if bias is not None:
            rows = jnp.asarray(bias, jnp.float32).reshape(len(own), 1, -1)
            new[f"{kind}/bias"] = dot(rows, own).reshape(-1)
    return module.replace(new)


def _select(module: Module, config: Any, pairs: np.ndarray) -> Module:
    """The columns of some pairs of every key head, and of the query heads that it serves."""
    new = {}
    for kind, count in zip(KINDS, (config.query_heads, config.kv_heads), strict=True):
        for leaf in ("kernel", "bias"):
            weight = module.weights.get(f"{kind}/{leaf}")
            if weight is not None:
                h = weight.shape[-1] // count
                own = np.repeat(pairs, count // len(pairs), axis=0)
                own = np.concatenate([own, own + h // 2], axis=1) + h * np.arange(count)[:, None]
                new[f"{kind}/{leaf}"] = weight[..., own.reshape(-1)]
    return module.replace(new)


def _named(config: Any, chosen: Mapping[int, np.ndarray]) -> tuple[Any, ...] | None:
    """The pairs of every layer's heads, among those of whole heads."""
    every = []
    for i in range(config.depth):
        own = config.pairs(i)
        if i in chosen:
            old = np.arange(config.head_size // 2)[None] if own is None else np.asarray(own)
            old = np.broadcast_to(old, (len(chosen[i]), old.shape[1]))
            own = tuple(map(tuple, np.take_along_axis(old, chosen[i], axis=1).tolist()))
        every.append(own)
    return tuple(every) if any(own is not None for own in every) else None
