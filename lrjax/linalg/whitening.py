"""Roots of positive semi-definite matrices, singular ones included, and ridge solves."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.linalg.stack import dot

FLOOR = 1e-6
"""Relative floor of the eigenvalues that may be inverted: ten roundings of the largest one in
float32, below which an eigenvalue of a computed Gram says nothing."""


def sqrt_psd(gram: Float[Array, "*S d d"]) -> Float[Array, "*S d d"]:
    """The symmetric root G^.5; eigenvalues that rounding made negative count as zero."""
    values, vectors = jnp.linalg.eigh(gram)
    return _compose(vectors, jnp.sqrt(jnp.maximum(values, 0)))


def whiten(
    gram: Float[Array, "*S d d"], floor: float = FLOOR
) -> tuple[Float[Array, "*S d d"], Float[Array, "*S d d"]]:
    """The symmetric root G^.5 and its pseudo-inverse G^-.5 over eigenvalues above floor * largest.

    Directions below the floor are dropped from the inverse, never divided by: data that spans
    a subspace only gives the exact answer on that subspace.
    """
    values, vectors = jnp.linalg.eigh(gram)
    roots = jnp.sqrt(jnp.maximum(values, 0))
    kept = (values > floor * values[..., -1:]) & (values > 0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, roots, 1), 0)
    return _compose(vectors, roots), _compose(vectors, inverse)


def solve_ridge(
    gram: Float[Array, "*S d d"], target: Float[Array, "*S d k"], ridge: float | Array = FLOOR
) -> Float[Array, "*S d k"]:
    """X of (G + ridge tr(G) / d I) X = T by Cholesky: the normal equations with a relative ridge.

    A zero G gives zero.
    """
    return ridge_solver(gram, ridge)(target)


def ridge_solver(
    gram: Float[Array, "*S d d"], ridge: float | Array = FLOOR
) -> Callable[[Array], Array]:
    """`solve_ridge` as a function of T, for many of them: G is factored once."""
    d = gram.shape[-1]
    trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    level = jnp.where(trace > 0, ridge * trace / d, 1)
    lower = jnp.linalg.cholesky(gram + level * jnp.eye(d, dtype=gram.dtype))
    substitute = functools.partial(lax.linalg.triangular_solve, lower, left_side=True, lower=True)

    def solve(target: Array) -> Array:
        full = substitute(substitute(target), transpose_a=True)
        return jnp.where(trace > 0, full, 0)

    return solve


def _compose(vectors: Array, values: Array) -> Array:
    return dot(vectors * values[..., None, :], jnp.swapaxes(vectors, -1, -2))
