"""The least-squares problem of one core, or of a merged pair, between what is before and behind."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import ridge_solver

STEPS = 4
"""Conjugate-gradient steps a core under a metric: a few of every core beat many of one."""


def improve(
    core: Float[Array, "r d s"],
    left: Float[Array, "a p r"],
    right: Float[Array, "s q a"],
    target: Float[Array, "..."],
    weigh: Callable[[Array], Array] | None,
    mean: Float[Array, " d"],
) -> Float[Array, "r d s"]:
    """A better G in min <A(X - Y), X - Y>, Y = sum_a L[a] G R[.., a], from where it stands.

    Without a metric, by the normal equations: (L'L * R'R) G = L'X R', the product of the Grams
    summed over a. In a train (a = 1) L and R are orthonormal and nothing is left to be solved. A
    metric takes conjugate-gradient steps, preconditioned by those Grams and by the mean weight of
    each index. Neither raises the objective.

    Args:
      core: G.
      left: the cores before it, L; orthonormal [(a p), r].
      right: the cores behind it, R; orthonormal [s, (q a)].
      target: A(X).
      weigh: the metric A; None is the identity.
      mean: mean weight of each index of the core.
    """
    (a, p, r), (s, q, _) = left.shape, right.shape
    before, behind = left.transpose(1, 0, 2), right.transpose(2, 0, 1)
    flat, rows = before.reshape(p, a * r), behind.reshape(a * s, q)
    short = functools.partial(jnp.einsum, precision="highest")

    # The longer side goes first and comes last: what is between is never larger than X.
    def project(y: Array) -> Array:
        if q < p:
            y = dot(flat.T, y.reshape(p, -1)).reshape(a, r, -1, q)
            return short("ardq,asq->rds", y, behind)
        y = dot(y.reshape(-1, q), rows.T).reshape(p, -1, a, s)
        return short("par,pdas->rds", before, y)

    def expand(g: Array) -> Array:
        if q < p:
            y = short("rds,asq->ardq", g, behind)
            return dot(flat, y.reshape(a * r, -1)).reshape(target.shape)
        y = short("par,rds->pdas", before, g)
        return dot(y.reshape(-1, a * s), rows).reshape(target.shape)

    gram, solve = _normal(before, behind)
    if weigh is None:
        return core + solve(project(target) - gram(core))
    return _steps(core, project(target), lambda g: project(weigh(expand(g))), solve, mean)


def _normal(before: Array, behind: Array) -> tuple[Callable, Callable]:
    """G -> (L'L * R'R) G, and what undoes it; both do nothing between orthonormal frames."""
    (p, a, r), (_, s, q) = before.shape, behind.shape
    if a == 1:
        return lambda g: g, lambda g: g
    flat = before.reshape(p, -1)
    first = dot(flat.T, flat).reshape(a, r, a, r)
    flat = behind.reshape(-1, q)
    second = dot(flat, flat.T).reshape(a, s, a, s)
    gram = jnp.einsum("arbt,asbu->rstu", first, second, precision="highest").reshape(r * s, r * s)
    inverse = ridge_solver(gram)

    def over_bonds(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """F on matrices [(r s), d]."""
        flat = lambda g: jnp.moveaxis(g, 1, -1).reshape(r * s, -1)
        return lambda g: jnp.moveaxis(f(flat(g)).reshape(r, s, -1), -1, 1)

    return over_bonds(lambda g: dot(gram, g)), over_bonds(inverse)


def _steps(
    core: Array, target: Array, normal: Callable, solve: Callable, mean: Float[Array, " d"]
) -> Array:
    """Conjugate-gradient steps on normal(G) = target."""
    level = 1e-6 * jnp.max(mean)
    scale = (1 / jnp.where(mean > level, mean, jnp.where(level > 0, level, 1)))[:, None]
    residual = target - normal(core)
    direction = scale * solve(residual)

    def step(_, state):
        core, residual, direction, power = state
        image = normal(direction)
        curvature = jnp.sum(direction * image)
        usable = (curvature > 0) & (power > 0)
        length = jnp.where(usable, power / jnp.where(usable, curvature, 1), 0)
        core, residual = core + length * direction, residual - length * image
        conditioned = scale * solve(residual)
        now = jnp.sum(residual * conditioned)
        share = jnp.where(power > 0, now / jnp.where(power > 0, power, 1), 0)
        return core, residual, conditioned + share * direction, now

    state = (core, residual, direction, jnp.sum(residual * direction))
    return lax.fori_loop(0, STEPS, step, state)[0]
