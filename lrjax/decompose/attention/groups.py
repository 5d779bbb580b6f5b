"""Fewer key and value heads: heads side by side are merged, their basis shared, none averaged.

Heads that become one share a new kernel of the old size; what tells them apart moves into their
queries and outputs. For values, and for keys that are not rotated, t heads of size h are one head
of size t h whose products are cut to h columns (`product`). Rotated keys are merged frequency by
frequency: the leading complex component of the t heads (`rotary`), the queries turned and scaled
to match, which is exact under rotations.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrjax.decompose.attention.heads import block_diagonal, inner, join_heads
from lrjax.decompose.attention.product import product
from lrjax.decompose.attention.rotary import components, pair_energy, pairs, unpair
from lrjax.linalg.stack import dot


class Merged(NamedTuple):
    """The shared kernels [*S, groups, d, h], and their counterparts of all query heads.

    ``missed`` [*S, groups] is the share of what the merged heads do, squared, that is lost.
    """

    shared: Array
    own: Array
    missed: Array


def merge_values(
    value: Float[Array, "*S G d h"],
    output: Float[Array, "*S H h e"],
    groups: int,
    *,
    gram: Float[Array, "*#S d d"] | None = None,
) -> Merged:
    """Values of fewer heads and the outputs to match: min sum_n E |x (V_g(n) O_n - V' O'_n)|^2."""
    *stack, count, d, h = value.shape
    wide = join_heads(value.reshape(*stack, groups, count // groups, d, h))
    outer = _served(inner(jnp.swapaxes(output, -1, -2)), count)
    cols = block_diagonal(outer.reshape(*stack, groups, count // groups, h, h))
    rows = inner(wide, _headed(gram))
    found = product(rows, cols, h)
    own = _blocks(jnp.swapaxes(found.right, -1, -2), count // groups)  # [*S, G, h, r]
    new = dot(jnp.swapaxes(_spread(own, output.shape[-3]), -1, -2), output)
    return Merged(dot(wide, found.left), new, _share(found.info.residual, rows, cols))


def merge_keys(
    query: Float[Array, "*S H d h"],
    key: Float[Array, "*S G e h"],
    groups: int,
    *,
    query_gram: Float[Array, "*#S d d"] | None = None,
    key_gram: Float[Array, "*#S e e"] | None = None,
) -> Merged:
    """Keys of fewer heads, not rotated, and the queries to match: the least change of all scores.

    Biases as in `score_product`.
    """
    *stack, count, e, h = key.shape
    wide = join_heads(key.reshape(*stack, groups, count // groups, e, h))
    outer = _served(inner(query, _headed(query_gram)), count)
    rows = block_diagonal(outer.reshape(*stack, groups, count // groups, h, h))
    cols = inner(wide, _headed(key_gram))
    found = product(rows, cols, h)
    own = _blocks(found.left, count // groups)
    new = dot(query, _spread(own, query.shape[-3]))
    shared = dot(wide, jnp.swapaxes(found.right, -1, -2))
    return Merged(shared, new, _share(found.info.residual, rows, cols))


def merge_rotated_keys(
    query: Float[Array, "*S H d h"],
    key: Float[Array, "*S G e h"],
    groups: int,
    *,
    query_gram: Float[Array, "*#S d d"] | None = None,
    key_gram: Float[Array, "*#S e e"] | None = None,
) -> Merged:
    """Keys of fewer heads that are rotated by position: the leading component at each frequency."""
    *stack, count, _, h = key.shape
    queried = pair_energy(_served(inner(query, _headed(query_gram)), count))
    split = lambda x: x.reshape(*stack, groups, count // groups, *x.shape[len(stack) + 1 :])
    found = components(split(key), split(queried), _headed(key_gram))
    first = lambda x: jnp.swapaxes(x[..., 0, :], -1, -2)  # [*S, groups, t, f]
    shared = jnp.einsum(
        "...tf,...tdf->...df", first(found.analysis), pairs(split(key)), precision="highest"
    )
    mix = first(found.synthesis).conj().reshape(*stack, count, 1, h // 2)
    new = unpair(pairs(query) * _spread(mix, query.shape[-3]))
    energy = jnp.sum(found.energy, axis=-2)
    total = jnp.sum(energy, axis=-1)
    return Merged(unpair(shared), new, jnp.sum(energy[..., 1:], axis=-1) / _nonzero(total))


def _served(moments: Float[Array, "*S H h h"], count: int) -> Float[Array, "*S G h h"]:
    """The sum over the query heads of each key head."""
    *stack, heads, h, k = moments.shape
    return jnp.sum(moments.reshape(*stack, count, heads // count, h, k), axis=-3)


def _spread(own: Shaped[Array, "*S G d h"], heads: int) -> Shaped[Array, "*S H d h"]:
    """Every key head's matrix, for each of its query heads."""
    return jnp.repeat(own, heads // own.shape[-3], axis=-3)


def _blocks(tall: Float[Array, "*S groups n r"], t: int) -> Float[Array, "*S G h r"]:
    *stack, groups, n, r = tall.shape
    return tall.reshape(*stack, groups * t, n // t, r)


def _share(residual: Array, rows: Array, cols: Array) -> Array:
    """Squared residual over tr(rows cols), that of nothing at all."""
    whole = jnp.sum(rows * cols, axis=(-2, -1))
    return residual**2 / _nonzero(whole)


def _nonzero(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)


def _headed(gram: Array | None) -> Array | None:
    return None if gram is None else gram[..., None, :, :]
