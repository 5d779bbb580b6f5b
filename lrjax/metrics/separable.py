"""The separable weights nearest to element-wise ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS = 50

FLOOR = 1e-6
"""Relative floor of the weights of rows and columns: one without any weight still has factors."""


@jax.jit
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


def _safe(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)
