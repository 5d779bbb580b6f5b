"""The least-squares problem of one core, or of a merged pair, between orthonormal frames."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot

STEPS = 4
"""Conjugate-gradient steps a core. The frames are orthonormal, so that without a metric the first
step is exact; with one, a few steps of every core beat many of one."""


def improve(
    core: Float[Array, "r d s"],
    left: Float[Array, "_ p r"],
    right: Float[Array, "s q _"],
    target: Float[Array, "..."],
    weigh: Callable[[Array], Array],
    mean: Float[Array, " d"],
) -> Float[Array, "r d s"]:
    """Conjugate-gradient steps on G in min <A(X - L G R), X - L G R>, from where it stands.

    Args:
      core: G.
      left: orthonormal frame L [1, p, r].
      right: orthonormal frame R [s, q, 1].
      target: A(X).
      weigh: the metric A.
      mean: mean weight of each index of the core, the preconditioner.
    """
    left, right = left[0], right[..., 0]
    p, q = left.shape[0], right.shape[1]

    def project(y: Array) -> Array:
        y = dot(left.T, y.reshape(p, -1)).reshape(-1, q)
        return dot(y, right.T).reshape(core.shape)

    def normal(g: Array) -> Array:
        y = dot(g.reshape(-1, right.shape[0]), right).reshape(g.shape[0], -1)
        return project(weigh(dot(left, y).reshape(target.shape)))

    level = 1e-6 * jnp.max(mean)
    scale = (1 / jnp.where(mean > level, mean, jnp.where(level > 0, level, 1)))[:, None]
    residual = project(target) - normal(core)
    direction = scale * residual

    def step(_, state):
        core, residual, direction, power = state
        image = normal(direction)
        curvature = jnp.sum(direction * image)
        usable = (curvature > 0) & (power > 0)
        length = jnp.where(usable, power / jnp.where(usable, curvature, 1), 0)
        core, residual = core + length * direction, residual - length * image
        conditioned = scale * residual
        now = jnp.sum(residual * conditioned)
        share = jnp.where(power > 0, now / jnp.where(power > 0, power, 1), 0)
        return core, residual, conditioned + share * direction, now

    state = (core, residual, direction, jnp.sum(residual * direction))
    return lax.fori_loop(0, STEPS, step, state)[0]
