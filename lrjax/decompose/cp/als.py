"""Alternating least squares for CP, with an exact line search on the true residual.

Factors are held terms first, [R, d], see `lrjax.linalg.khatri_rao`.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.cp.line_search import search
from lrjax.linalg.driver import Progress, iterate
from lrjax.linalg.khatri_rao import Factors, compose, sweep
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import solve_ridge

SWEEPS_PER_SEARCH = 4
"""Sweeps between line searches. A search costs about three sweeps; with one every 4 sweeps all of
ten problems with congruence .9 (30^3, R = 10) are solved, without any of them none."""

PROXIMAL = 1e-6
"""Default pull to the previous iterate, relative to the mean of the Gram's diagonal: enough for a
positive definite system in float32 when terms become collinear, too little to slow a good one."""

ROUNDING = 1e-5
"""Share by which a residual may exceed its bound: what float32 leaves undecided."""


class Penalty(NamedTuple):
    """The price mu of sum_r |term_r|^2, whether the last fit was within bounds, and the stride."""

    level: Float[Array, ""]
    side: Float[Array, ""]
    stride: Float[Array, ""]

    def adapted(self, within: Array) -> "Penalty":
        """Dearer after a fit within bounds, cheaper after one beyond; turns halve the stride."""
        side = jnp.where(within, 1, -1).astype(self.side.dtype)
        stride = jnp.clip(self.stride * jnp.where(side == self.side, 1.2, 0.5), 0.02, 3.0)
        return Penalty(self.level * jnp.exp(side * stride), side, stride)


def others_gram(factors: Factors, k: int) -> Float[Array, "R R"]:
    """Z'Z of the Khatri-Rao product Z of all factors but k: the Hadamard product of Grams."""
    grams = [dot(f, f.T) for j, f in enumerate(factors) if j != k]
    return functools.reduce(operator.mul, grams, jnp.ones((factors[0].shape[0],) * 2))


def update(
    k: int,
    mttkrp: Float[Array, "R d"],
    factors: Factors,
    *,
    proximal: float | Array = PROXIMAL,
    penalty: float | Array = 0.0,
) -> Float[Array, "R d"]:
    """The minimiser over F of |T - F Z|^2 + mu sum_r |term_r|^2 + pull |F - F_old|^2.

    The other factors' part of |term_r|^2 is the diagonal of Z'Z, so that the penalty is a ridge
    relative to it: (Z'Z + mu diag(Z'Z) + pull I) F = M + pull F_old.
    """
    gram = others_gram(factors, k)
    pull = proximal * jnp.trace(gram) / gram.shape[0]
    gram = gram * (1 + penalty * jnp.eye(gram.shape[0]))
    return solve_ridge(gram, mttkrp + pull * factors[k], proximal)


def balance(factors: Factors) -> Factors:
    """The same tensor with factors of equal norm term by term; a dead term stays zero."""
    norms = [jnp.linalg.norm(f, axis=1, keepdims=True) for f in factors]
    mean = math.prod(norms) ** (1 / len(factors))
    return tuple(f * (mean / jnp.where(n > 0, n, 1)) for f, n in zip(factors, norms, strict=True))


def relative_residual(t: Float[Array, "*d"], factors: Factors) -> Float[Array, ""]:
    """|T - X| from the difference itself, for a T of unit norm."""
    return jnp.linalg.norm((t - compose(factors)).ravel())


def terms_norm(factors: Factors) -> Float[Array, ""]:
    """sqrt(sum_r |term_r|^2)."""
    squares = math.prod(jnp.sum(f**2, axis=1) for f in factors)
    return jnp.sqrt(jnp.sum(squares))


def als(
    t: Float[Array, "*d"],
    factors: Factors,
    *,
    sweeps: int | Array,
    tol: float | Array,
    goal: float | Array = 0.0,
    proximal: float | Array = PROXIMAL,
    bound: float | Array = 0.0,
) -> tuple[Factors, Progress]:
    """Run sweeps with line search until the residual of T (unit norm) settles.

    With a positive `bound` the objective is the norm of the terms instead, over all X with
    |T - X| <= bound: sweeps minimise |T - X|^2 + mu sum_r |term_r|^2, mu rises while they stay
    within the bound and falls when they leave it, and the line search goes where the terms are
    least within the bound. `Progress.steps` counts groups of `SWEEPS_PER_SEARCH` sweeps.
    """
    factors = balance(factors)
    bound = jnp.asarray(bound, t.dtype)
    residual, norm = relative_residual(t, factors), terms_norm(factors)
    room = jnp.maximum(bound**2 - residual**2, 0)
    level = jnp.where(bound > 0, room / jnp.where(norm > 0, norm, 1) ** 2, 0)
    one = jnp.ones((), t.dtype)
    state = factors, Penalty(level, one, one)

    def step(state: tuple[Factors, Penalty], _) -> tuple[tuple[Factors, Penalty], Array]:
        old, price = state
        fit = functools.partial(update, proximal=proximal, penalty=price.level)
        once = lambda _, x: sweep(t, x, fit)
        new = balance(jax.lax.fori_loop(0, SWEEPS_PER_SEARCH, once, old))
        found = search(t, old, tuple(map(operator.sub, new, old)), bound)
        light = jnp.where(found.residual <= bound * (1 + ROUNDING), found.terms, 2 * norm)
        light = jnp.where(jnp.isfinite(found.residual), light, jnp.nan)
        state = found.factors, price.adapted(found.straight <= bound)
        return state, jnp.where(bound > 0, light, found.residual)

    steps = -(-sweeps // SWEEPS_PER_SEARCH)
    start = jnp.where(bound > 0, norm, residual)
    still = jnp.where(bound > 0, 0.0, tol)  # a group that only moves the price is not the end
    (factors, _), progress = iterate(
        step, state, start, steps=steps, tol=still, goal=goal, patience=3
    )
    return factors, progress
