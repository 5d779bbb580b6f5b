"""Exact line search for CP: the residual along a direction is a polynomial in the step."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.khatri_rao import Factors, balanced_cut, khatri_rao
from lrjax.linalg.stack import dot

LONGEST = 100.0
"""Longest step tried, in units of the last move; swamps are crossed with steps of 10 to 50."""

CANDIDATES = 64


class Found(NamedTuple):
    """The best point of a line, its residual and norm of terms, and the residual at step one."""

    factors: Factors
    residual: Float[Array, ""]
    terms: Float[Array, ""]
    straight: Float[Array, ""]


def search(
    t: Float[Array, "*d"], factors: Factors, move: Factors, bound: Float[Array, ""] | float = 0.0
) -> Found:
    """The best factors + step * move, step >= 0: of least residual |T - X|.

    With a positive bound it is the one of least terms among those whose residual is within the
    bound, or no larger than that of step 0.

    T - X(step) = E - step X_1 - ... - step^N X_N. The (N+1)^2 inner products of these tensors are
    exact functions of the true residual E, so that no squares of T cancel; step 0 is a candidate,
    so the objective never rises (Rajih, Comon, Harshman, 2008).
    """
    cut = balanced_cut(t.shape)
    left = _polynomial(factors[:cut], move[:cut])
    right = _polynomial(factors[cut:], move[cut:])
    terms = []
    for degree in range(len(factors) + 1):
        pairs = [(a, degree - a) for a in range(len(left)) if 0 <= degree - a < len(right)]
        lefts = jnp.concatenate([left[a] for a, _ in pairs])
        rights = jnp.concatenate([right[b] for _, b in pairs])
        terms.append(-dot(lefts.T, rights).ravel())
    terms[0] = terms[0] + t.ravel()
    stacked = jnp.stack(terms)
    gram = dot(stacked, stacked.T)
    steps = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.05, LONGEST, CANDIDATES), jnp.ones(1)])
    powers = steps[:, None] ** jnp.arange(max(len(terms), 3))
    squares = jnp.sum(dot(powers[:, : len(terms)], gram) * powers[:, : len(terms)], axis=1)
    squares = jnp.where(jnp.isfinite(squares), jnp.maximum(squares, 0), jnp.inf)
    norms = _norms(powers[:, :3], factors, move)
    allowed = squares <= jnp.maximum(jnp.square(bound), squares[0])
    best = jnp.argmin(jnp.where(bound > 0, jnp.where(allowed, norms, jnp.inf), squares))
    moved = tuple(f + steps[best] * d for f, d in zip(factors, move, strict=True))
    residual = jnp.linalg.norm(dot(powers[best, : len(terms)][None], stacked))
    residual = jnp.where(jnp.isfinite(gram[0, 0]), residual, jnp.nan)
    return Found(moved, residual, norms[best], jnp.sqrt(squares[-1]))


def _norms(powers: Float[Array, "s 3"], factors: Factors, move: Factors) -> Float[Array, " s"]:
    """sqrt(sum_r |term_r|^2) at every step: the product of a quadratic for each mode."""
    quadratics = [
        jnp.stack([jnp.sum(f * f, axis=1), 2 * jnp.sum(f * d, axis=1), jnp.sum(d * d, axis=1)])
        for f, d in zip(factors, move, strict=True)
    ]
    squares = math.prod(jnp.maximum(dot(powers, q), 0) for q in quadratics)
    return jnp.sqrt(jnp.sum(squares, axis=1))


def _polynomial(factors: Sequence[Array], move: Sequence[Array]) -> list[Array]:
    """Coefficients of the Khatri-Rao product of factors + step * move."""
    (first, *rest), (first_move, *rest_move) = factors, move
    terms = [first, first_move]
    for f, d in zip(rest, rest_move, strict=True):
        straight = [khatri_rao([c, f]) for c in terms]
        moving = [khatri_rao([c, d]) for c in terms]
        inner = [s + m for s, m in zip(straight[1:], moving[:-1], strict=True)]
        terms = [straight[0], *inner, moving[-1]]
    return terms
