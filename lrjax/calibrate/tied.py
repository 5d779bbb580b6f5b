"""A table that is looked up and is the output head too: one metric for both of its uses."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.metrics import Moments

Pair = tuple[Moments, Moments]


def combine(uses: Sequence[Pair]) -> Pair:
    """One pair (rows, cols) that stands for the sum of losses over all uses.

    sum_k n_k tr(D' R_k D C_k) over uses of n_k tokens is no single trace. Its stand-in has the
    shares p_k = n_k tr R_k tr C_k / s, s their sum: rows = sum_k p_k R_k / tr R_k, cols the same
    of C_k, times s. It is exact for one use, and has the sum's own trace, as a matrix on vec D,
    for any.

    Args:
        uses: moments of the rows and of the cols of each use, in the weight's own layout.
    """
    tokens = [rows.count for rows, _ in uses]
    most = jnp.maximum(jnp.stack(tokens).max(axis=0), 1.0)
    scales = [
        n / most * _trace(rows) * _trace(cols) for n, (rows, cols) in zip(tokens, uses, strict=True)
    ]
    whole = sum(scales, start=jnp.zeros(()))
    shares = [s / jnp.where(whole > 0, whole, 1.0) for s in scales]
    rows = _mixed([pair[0] for pair in uses], shares, most, jnp.ones_like(whole))
    return rows, _mixed([pair[1] for pair in uses], shares, most, whole)


def _mixed(
    sides: Sequence[Moments], shares: Sequence[Array], count: Array, scale: Array
) -> Moments:
    """The sum of p_k S_k / tr S_k, scaled; a diagonal as soon as one side is."""
    diagonal = any(side.diagonal for side in sides)

    def one(side: Moments, share: Array) -> Array:
        value = side.second
        if diagonal and not side.diagonal:
            value = jnp.diagonal(value, axis1=-2, axis2=-1)
        trace = _trace(side)
        factor = scale * share / jnp.where(trace > 0, trace, 1.0)
        return jnp.reshape(factor, factor.shape + (1,) * (value.ndim - factor.ndim)) * value

    parts = [one(side, share) for side, share in zip(sides, shares, strict=True)]
    return Moments(count, None, sum(parts[1:], start=parts[0]), diagonal)


def _trace(side: Moments) -> Float[Array, "*S"]:
    if side.diagonal:
        return jnp.sum(side.second, axis=-1)
    return jnp.trace(side.second, axis1=-2, axis2=-1)
