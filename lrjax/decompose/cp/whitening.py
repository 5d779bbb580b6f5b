"""A metric of rows and columns, mode by mode: what CP can be whitened by."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from lrjax.linalg.separable import separate
from lrjax.linalg.stack import working
from lrjax.linalg.whitening import whiten
from lrjax.metrics import Metric


@functools.partial(jax.jit, static_argnums=(2, 3))
def whiten_modes(
    w: Float[Array, "*S m n"], metric: Metric, modes: tuple[int, ...], cut: int
) -> tuple[Float[Array, "..."], list[Array | None]]:
    """The tensor [*S, *modes] with G_k^.5 applied to mode k, and every G_k^-.5 (None: identity).

    Exact where each side is one mode, or a Kronecker product over its modes; else a side stands
    for the product of its partial traces.
    """
    stack = w.shape[:-2]
    x = working(w).reshape(*stack, *modes)
    back: list[Array | None] = []
    sides = zip(metric.broadcast(stack).arrays(), (modes[:cut], modes[cut:]), strict=True)
    for side, sizes in sides:
        if side is None:
            back += [None] * len(sizes)
            continue
        diagonal = side.ndim == len(stack) + 1
        for part in separate(working(side), sizes, diagonal=diagonal):
            full = part[..., None] * jnp.eye(part.shape[-1]) if diagonal else part
            root, inverse = whiten(full)
            x = along(x, root, len(stack) + len(back))
            back.append(inverse)
    return x, back


def along(x: Array, matrix: Float[Array, "*S d d"], axis: int) -> Array:
    """A tensor times a symmetric matrix along one axis, stack index by stack index."""
    stack = matrix.ndim - 2
    moved = jnp.moveaxis(x, axis, -1)
    flat = moved.reshape(*x.shape[:stack], -1, x.shape[axis])
    flat = jnp.matmul(flat, matrix, precision="highest")
    return jnp.moveaxis(flat.reshape(moved.shape), -1, axis)
