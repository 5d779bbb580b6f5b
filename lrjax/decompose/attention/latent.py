"""One basis for all the key and value heads of a layer: what is cached is r floats a token.

    [K_1, ..., K_G, V_1, ..., V_G] ~ basis [d, r] @ [core_1, ..., core_2G]

Palu (arXiv:2407.21118) and CARE have it by groups or for one of the two; multi-head latent
attention (arXiv:2405.04434) is trained so.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.attention.heads import join_heads
from lrjax.errors import RankError, message
from lrjax.linalg import Info, weighted_residual, weighted_spectrum, weighted_svd, whiten
from lrjax.linalg.stack import dot

Stacks = Sequence[Float[Array, "*S _ d _"]]
"""Stacks of heads' kernels [*S, heads, d, h]: keys and values, whose sizes h may differ."""

Sides = Sequence[Float[Array, "*S _ _ _"] | None]
"""What errors of each head's output weigh, [*S, heads, h, h] a stack; None is the identity."""


class Latent(NamedTuple):
    """head ~ basis @ core for every head: basis [*S, d, r], cores like the stacks, [.., r, h]."""

    basis: Array
    cores: tuple[Array, ...]
    info: Info


def joint_basis(
    stacks: Stacks,
    rank: int,
    *,
    rows: Float[Array, "*S d d"] | None = None,
    cols: Sides | None = None,
) -> Latent:
    """The least sum_i tr(D_i' rows D_i cols_i), D_i = W_i - basis core_i, over all heads i.

    Each head is weighed by the root of its own small side; what follows is the inverse-free
    weighted SVD of all heads side by side. At full rank, min(d, all head sizes together), the
    factors are the kernels and the identity, exact whatever the statistics.

    Raises:
        RankError: a rank below one or above the full one.
    """
    d, n = stacks[0].shape[-2], sum(w.shape[-3] * w.shape[-1] for w in stacks)
    if not 1 <= rank <= min(d, n):
        raise RankError(
            message(
                got=f"rank {rank} for {n} columns of keys and values, of {d} inputs",
                expected=f"a rank from 1 to {min(d, n)}",
                todo="Choose a smaller rank.",
            )
        )
    whole = jnp.concatenate([join_heads(w) for w in stacks], axis=-1)
    white, inverses = _whitened(stacks, cols)
    if rank == min(d, n):
        one = jnp.broadcast_to(jnp.eye(rank, dtype=whole.dtype), (*whole.shape[:-2], rank, rank))
        basis, right = (one, whole) if d < n else (whole, one)
        info = _exact(whole, basis, right, rows)
        return Latent(basis, _cores(right, stacks, None), info)
    left, right, _, info = weighted_svd(white, rank, rows=rows)
    return Latent(left, _cores(right, stacks, inverses), info)


def joint_spectrum(
    stacks: Stacks, *, rows: Float[Array, "*S d d"] | None = None, cols: Sides | None = None
) -> Float[Array, "*S k"]:
    """s, falling: the loss of `joint_basis` at rank r is the sum of s_i^2 over i > r."""
    return weighted_spectrum(_whitened(stacks, cols)[0], rows)


def _whitened(stacks: Stacks, cols: Sides | None) -> tuple[Array, list[Array | None]]:
    """All heads side by side, each times the root of its side, and the roots' inverses."""
    white, inverses = [], []
    for w, side in zip(stacks, cols or [None] * len(stacks), strict=True):
        root, inverse = (None, None) if side is None else whiten(side)
        white.append(join_heads(w if root is None else dot(w, root)))
        inverses.append(inverse)
    return jnp.concatenate(white, axis=-1), inverses


def _cores(right: Array, stacks: Stacks, inverses: Sequence[Array | None] | None) -> tuple:
    """The columns of every head, out of the whitened space."""
    cores, at = [], 0
    for w, inverse in zip(stacks, inverses or [None] * len(stacks), strict=True):
        count, h = w.shape[-3], w.shape[-1]
        own = right[..., at : at + count * h]
        own = jnp.moveaxis(own.reshape(*own.shape[:-1], count, h), -2, -3)
        cores.append(own if inverse is None else dot(own, inverse))
        at += count * h
    return tuple(cores)


def _exact(whole: Array, basis: Array, right: Array, rows: Array | None) -> Info:
    residual = weighted_residual(whole, basis, right, rows=rows)
    return Info(residual, jnp.ones(residual.shape, jnp.int32), jnp.zeros(residual.shape, jnp.int32))
