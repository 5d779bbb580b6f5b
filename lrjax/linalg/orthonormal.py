"""Orthonormal rows by Cholesky QR, and a fixed sign for singular vectors."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.linalg.stack import dot


def cholesky_qr(rows: Float[Array, "b n"], energy: Float[Array, ""]) -> Float[Array, "b n"]:
    """Nearly orthonormal rows of the same span: L^-1 Z, Z Z' = L L'; a first pass.

    Matrix products and one b x b factorisation, where Householder QR runs column by column. A
    shift of some rounding errors of `energy` keeps L real on dependent rows (Fukaya et al. 2020):
    no singular value of the result is above one, and those of mere rounding stay near zero.

    Args:
      rows: Z.
      energy: squared norm of what Z was computed from, which its rounding errors are relative to.
    """
    shift = 32 * jnp.finfo(rows.dtype).eps * energy + jnp.finfo(rows.dtype).tiny
    return _eliminate(rows, _cholesky(rows, shift))


def orthonormal(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Orthonormal rows out of a first pass; zeros in place of what was rounding.

    Cholesky QR twice is orthonormal to rounding (Yamamoto et al. 2015). The first pass raised
    signal towards one and rounding to some 1e-4 at most, so that pivots tell them apart.
    """
    eps = float(jnp.finfo(rows.dtype).eps)
    lower = _cholesky(rows, 4 * eps)
    alive = jnp.diagonal(lower) ** 2 > 128 * eps
    return jnp.where(alive[:, None], _eliminate(rows, lower), 0)


def cholesky_qr2(rows: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Both passes."""
    return orthonormal(cholesky_qr(rows, jnp.sum(rows**2)))


def _cholesky(rows: Array, shift: Array | float) -> Array:
    return jnp.linalg.cholesky(dot(rows, rows.T) + shift * jnp.eye(len(rows), dtype=rows.dtype))


def _eliminate(rows: Array, lower: Array) -> Array:
    return lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)


def fix_signs(
    vectors: Float[Array, "r n"], *partners: Float[Array, "r _"]
) -> tuple[Float[Array, "r _"], ...]:
    """Every row's entry of largest magnitude made positive, its partners' rows turned with it."""
    peak = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
    sign = jnp.where(jnp.take_along_axis(vectors, peak, axis=1) < 0, -1, 1).astype(vectors.dtype)
    return (vectors * sign, *(p * sign for p in partners))
