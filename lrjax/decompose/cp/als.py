"""Alternating least squares for CP, with an exact line search on the true residual.

Factors are held terms first, [R, d], see `lrjax.linalg.khatri_rao`.
"""

import functools
import math
import operator

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


def others_gram(factors: Factors, k: int) -> Float[Array, "R R"]:
    """Z'Z of the Khatri-Rao product Z of all factors but k: the Hadamard product of Grams."""
    grams = [dot(f, f.T) for j, f in enumerate(factors) if j != k]
    return functools.reduce(operator.mul, grams, jnp.ones((factors[0].shape[0],) * 2))


def update(
    k: int, mttkrp: Float[Array, "R d"], factors: Factors, *, proximal: float = PROXIMAL
) -> Float[Array, "R d"]:
    """The minimiser over F of |T - F Z|^2 + mu |F - F_old|^2: (Z'Z + mu I) F = M + mu F_old."""
    gram = others_gram(factors, k)
    mu = proximal * jnp.trace(gram) / gram.shape[0]
    return solve_ridge(gram, mttkrp + mu * factors[k], proximal)


def balance(factors: Factors) -> Factors:
    """The same tensor with factors of equal norm term by term; a dead term stays zero."""
    norms = [jnp.linalg.norm(f, axis=1, keepdims=True) for f in factors]
    mean = math.prod(norms) ** (1 / len(factors))
    return tuple(f * (mean / jnp.where(n > 0, n, 1)) for f, n in zip(factors, norms, strict=True))


def relative_residual(t: Float[Array, "*d"], factors: Factors) -> Float[Array, ""]:
    """|T - X| from the difference itself, for a T of unit norm."""
    return jnp.linalg.norm((t - compose(factors)).ravel())


def als(
    t: Float[Array, "*d"],
    factors: Factors,
    *,
    sweeps: int | Array,
    tol: float | Array,
    goal: float | Array = 0.0,
    proximal: float = PROXIMAL,
) -> tuple[Factors, Progress]:
    """Run sweeps with line search until the residual of T (unit norm) settles.

    `Progress.steps` counts groups of `SWEEPS_PER_SEARCH` sweeps.
    """
    update_mode = functools.partial(update, proximal=proximal)

    def step(old: Factors, _) -> tuple[Factors, Array]:
        once = lambda _, x: sweep(t, x, update_mode)
        new = balance(jax.lax.fori_loop(0, SWEEPS_PER_SEARCH, once, old))
        return search(t, new, tuple(map(operator.sub, new, old)))

    steps = -(-sweeps // SWEEPS_PER_SEARCH)
    factors = balance(factors)
    start = relative_residual(t, factors)
    return iterate(step, factors, start, steps=steps, tol=tol, goal=goal, patience=3)
