"""The separable weights nearest to element-wise ones, and the optimum under them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.weighted import weighted_svd

STEPS = 50

FLOOR = 1e-6
"""Relative floor of the weights of rows and columns: one without any weight still has factors."""


def separable_sides(
    f: Float[Array, "*S m n"],
) -> tuple[Float[Array, "*S m"], Float[Array, "*S n"]]:
    """r, c >= 0 of min |F^.5 - r^.5 c^.5'|, alternating: the leading singular pair of F^.5."""
    root = jnp.sqrt(f)

    def alternate(_, sides):
        c = sides[1]
        r = jnp.einsum("...mn,...n->...m", root, c)
        r = r / _safe(jnp.sum(c**2, axis=-1, keepdims=True))
        c = jnp.einsum("...mn,...m->...n", root, r)
        return r, c / _safe(jnp.sum(r**2, axis=-1, keepdims=True))

    ones = jnp.ones(f.shape[:-1], f.dtype), jnp.ones((*f.shape[:-2], f.shape[-1]), f.dtype)
    r, c = jax.lax.fori_loop(0, STEPS, alternate, ones)
    floored = lambda x: jnp.maximum(x**2, FLOOR * jnp.max(x**2, axis=-1, keepdims=True))
    return floored(r), floored(c)


def separable_start(
    w: Float[Array, "m n"], f: Float[Array, "m n"], rank: int, key: Array
) -> tuple[Float[Array, "m r"], Float[Array, "r n"]]:
    """The closed-form optimum under r c', with factors balanced pair by pair."""
    r, c = separable_sides(f)
    left, right, _, _ = weighted_svd(w, rank, rows=r, cols=c, key=key)
    columns, rows = jnp.linalg.norm(left, axis=0), jnp.linalg.norm(right, axis=1)
    usable = (columns > 0) & (rows > 0)
    share = jnp.sqrt(jnp.where(usable, rows / jnp.where(usable, columns, 1), 1))
    return left * share, right / share[:, None]


def _safe(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)
