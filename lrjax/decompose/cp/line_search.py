"""Exact line search for CP: the residual along a direction is a polynomial in the step."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.khatri_rao import Factors, balanced_cut, khatri_rao
from lrjax.linalg.stack import dot

LONGEST = 100.0
"""Longest step tried, in units of the last move; swamps are crossed with steps of 10 to 50."""

CANDIDATES = 64


def search(
    t: Float[Array, "*d"], factors: Factors, move: Factors
) -> tuple[Factors, Float[Array, ""]]:
    """The best factors + step * move, step >= 0, and its residual |T - X|.

    T - X(step) = E - step X_1 - ... - step^N X_N. The (N+1)^2 inner products of these tensors are
    exact functions of the true residual E, so that no squares of T cancel; step 0 is a candidate,
    so the residual never rises (Rajih, Comon, Harshman, 2008).
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
    steps = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.05, LONGEST, CANDIDATES)])
    powers = steps[:, None] ** jnp.arange(len(terms))
    squares = jnp.sum(dot(powers, gram) * powers, axis=1)
    squares = jnp.where(jnp.isfinite(squares), jnp.maximum(squares, 0), jnp.inf)
    best = jnp.argmin(squares)
    moved = tuple(f + steps[best] * d for f, d in zip(factors, move, strict=True))
    residual = jnp.linalg.norm(dot(powers[best][None], stacked))
    return moved, jnp.where(jnp.isfinite(gram[0, 0]), residual, jnp.nan)


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
