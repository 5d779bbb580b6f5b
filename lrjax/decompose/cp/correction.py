"""Error-preserving correction: the same fit with terms that do not cancel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.cp.als import balance, others_gram, relative_residual
from lrjax.linalg.driver import iterate
from lrjax.linalg.khatri_rao import Factors, compose, khatri_rao
from lrjax.linalg.stack import dot
from lrjax.linalg.tensor import unfold

BISECTIONS = 60
FLOOR = 1e-7
"""Relative floor of the Gram's eigenvalues that are divided by: float32's rounding."""


def correct(
    t: Float[Array, "*d"],
    factors: Factors,
    *,
    slack: float | Array = 1e-3,
    sweeps: int = 50,
    tol: float = 1e-3,
) -> Factors:
    """Factors of least sum_r |term_r|^2 with |T - X| at most (1 + slack) times what it is now.

    Diverging terms of a conventional fit cancel each other, and cannot be fine-tuned; most of
    their norm buys next to no error (Phan et al., arXiv:2008.05441). T has unit norm. The result
    never has larger terms than the input, nor a larger residual than allowed.
    """
    bound = (1 + slack) * relative_residual(t, factors)

    def step(factors: Factors, _) -> tuple[Factors, Array]:
        for k in range(len(factors)):
            factors = (*factors[:k], _lighten(t, factors, k, bound), *factors[k + 1 :])
        within = relative_residual(t, factors) <= bound * (1 + 1e-5)
        return factors, jnp.where(within, terms_norm(factors), jnp.inf)

    start = terms_norm(factors)
    factors, _ = iterate(step, factors, start, steps=sweeps, tol=tol, patience=2)
    return balance(factors)


def terms_norm(factors: Factors) -> Float[Array, ""]:
    """sqrt(sum_r |term_r|^2)."""
    squares = jnp.prod(jnp.stack([jnp.sum(f**2, axis=1) for f in factors]), axis=0)
    return jnp.sqrt(jnp.sum(squares))


def _lighten(t: Array, factors: Factors, k: int, bound: Array) -> Float[Array, "R d"]:
    """The factor of mode k, the others of unit norm: ridge with the largest admissible level.

    With Z'Z = V diag(g) V', M = Z'T and A(l) = V (g + l)^-1 V'M, the squared residual is that of
    least squares plus sum_q |(V'M)_q|^2 l^2 / (g (g + l)^2): it grows with l, and the bisection
    runs in the eigenbasis. Residuals are taken from T - X, never from cancelling squares.
    """
    others = [f for j, f in enumerate(factors) if j != k]
    norms = jnp.prod(jnp.stack([jnp.linalg.norm(f, axis=1) for f in others]), axis=0)
    unit = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)[:, None]
    gram = others_gram(factors, k) * unit * unit.T
    values, vectors = jnp.linalg.eigh(gram)
    values = jnp.maximum(values, FLOOR * values[-1])
    error = t - compose(factors)
    slope = dot(vectors.T, unit * dot(khatri_rao(others), unfold(error, k).T))
    now = factors[k] * norms[:, None]
    target = slope + values[:, None] * dot(vectors.T, now)
    energy = jnp.sum(target**2, axis=1)
    least = jnp.sum(error**2) - jnp.sum(jnp.sum(slope**2, axis=1) / values)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        level = values[-1] * 10.0**middle
        added = jnp.sum(energy * level**2 / (values * (values + level) ** 2))
        fits = least + added <= bound**2
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    ends = (jnp.float32(-9.0), jnp.float32(4.0))
    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, ends)
    level = values[-1] * 10.0**low
    return dot(vectors, target / (values + level)[:, None]) * unit
