"""Orthonormal rows by Cholesky QR, and a fixed sign for singular vectors."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.linalg.stack import dot


def cholesky_qr(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Rows of the same span, orthonormal up to the square of their condition: L^-1 Z, Z Z' = L L'.

    Matrix products and one b x b factorisation, where Householder QR runs column by column. The
    shift of a few rounding errors keeps L real on dependent rows (shifted Cholesky QR, Fukaya et
    al. 2020); rows that are exactly zero stay zero.
    """
    gram = dot(rows, rows.T)
    limits = jnp.finfo(rows.dtype)
    shift = 8 * limits.eps * jnp.trace(gram) + limits.tiny
    lower = jnp.linalg.cholesky(gram + shift * jnp.eye(len(rows), dtype=rows.dtype))
    return lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)


def cholesky_qr2(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Orthonormal rows of the same span, to rounding: Cholesky QR twice (Yamamoto et al. 2015)."""
    return cholesky_qr(cholesky_qr(rows))


def fix_signs(
    vectors: Float[Array, "r n"], *partners: Float[Array, "r _"]
) -> tuple[Float[Array, "r _"], ...]:
    """Every row's entry of largest magnitude made positive, its partners' rows turned with it."""
    peak = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
    sign = jnp.where(jnp.take_along_axis(vectors, peak, axis=1) < 0, -1, 1).astype(vectors.dtype)
    return (vectors * sign, *(p * sign for p in partners))
