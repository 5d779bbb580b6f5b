"""Hierarchical alternating least squares: non-negative least squares one component at a time.

Both factors are held components first, [r, m] and [r, n], so that a component is contiguous.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot


def passes(
    x: Float[Array, "r m"],
    target: Float[Array, "r m"],
    gram: Float[Array, "r r"],
    count: int,
) -> Float[Array, "r m"]:
    """`count` cyclic passes over the rows of x >= 0 for min 1/2 tr(x' G x) - tr(x' T).

    x_j <- max(0, x_j + (T - G x)_j / G_jj): each row is optimal for the others, so the objective
    never rises. T and G, the products with the whole data, are shared by all passes, which is
    what makes several of them pay (Gillis and Glineur, arXiv:1107.5194). Both are divided by G_jj
    once, and x_j taken out of the product. A row whose G_jj is zero, of a dead partner, stays.
    """
    diagonal = jnp.diagonal(gram)
    alive = diagonal > 0
    inverse = jnp.where(alive, 1 / jnp.where(alive, diagonal, 1), 0)[:, None]
    target = target * inverse
    others = jnp.where(jnp.eye(len(gram), dtype=bool), jnp.where(alive, 0, -1), gram * inverse)

    def one(step, x):
        j = step % x.shape[0]
        row = lambda a: jax.lax.dynamic_slice_in_dim(a, j, 1, 0)
        new = jnp.maximum(row(target) - dot(row(others), x), 0)
        return jax.lax.dynamic_update_slice_in_dim(x, new, j, 0)

    return jax.lax.fori_loop(0, count * x.shape[0], one, x)


def stationarity(
    x: Float[Array, "r m"], gradient: Float[Array, "r m"], *, signed: bool
) -> Float[Array, ""]:
    """Norm of the part of the gradient that a feasible step can use: zero at a KKT point."""
    usable = gradient if signed else jnp.where(x > 0, gradient, jnp.minimum(gradient, 0))
    return jnp.linalg.norm(usable.ravel())
