"""Kernels head by head, biases as one more input, and the Grams of what heads put out."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import StatsError, message
from lrjax.linalg.stack import dot


def split_heads(kernel: Float[Array, "*S d n"], heads: int) -> Float[Array, "*S heads d h"]:
    """[d, heads h] -> a matrix [d, h] for each head."""
    *stack, d, n = kernel.shape
    return jnp.moveaxis(kernel.reshape(*stack, d, heads, n // heads), -2, -3)


def join_heads(heads: Float[Array, "*S heads d h"]) -> Float[Array, "*S d n"]:
    """The heads' matrices side by side: undoes `split_heads`."""
    *stack, count, d, h = heads.shape
    return jnp.moveaxis(heads, -3, -2).reshape(*stack, d, count * h)


def affine(kernel: Float[Array, "*S d n"], bias: Float[Array, "*S n"]) -> Float[Array, "*S d+1 n"]:
    """The bias as the row of an input that is always one: x W + b = [x, 1] [W; b]."""
    return jnp.concatenate([kernel, bias[..., None, :].astype(kernel.dtype)], axis=-2)


def affine_gram(
    second: Float[Array, "*S d d"], mean: Float[Array, "*S d"] | None
) -> Float[Array, "*S d+1 d+1"]:
    """E[[x, 1] [x, 1]'] from E[x x'] and E[x].

    Raises:
        StatsError: the mean was not kept.
    """
    if mean is None:
        raise StatsError(
            message(
                got="second moments without their means",
                expected="the mean input of a layer with biases",
                todo="Calibrate with lr.calibrate, which keeps means.",
            )
        )
    column = mean[..., :, None]
    last = jnp.concatenate([mean, jnp.ones_like(mean[..., :1])], axis=-1)[..., None, :]
    return jnp.concatenate([jnp.concatenate([second, column], axis=-1), last], axis=-2)


def inner(
    w: Float[Array, "*S d n"], gram: Float[Array, "*#S d d"] | None = None
) -> Float[Array, "*S n n"]:
    """W' S W: the second moment of x W; S is the identity unless told."""
    right = w if gram is None else dot(gram, w)
    return dot(jnp.swapaxes(w, -1, -2), right)


def block_diagonal(blocks: Float[Array, "*S t h k"]) -> Float[Array, "*S t*h t*k"]:
    """The blocks along the diagonal, zeros elsewhere."""
    *stack, t, h, k = blocks.shape
    spread = jnp.eye(t, dtype=blocks.dtype)[:, None, :, None] * blocks[..., :, :, None, :]
    return spread.reshape(*stack, t * h, t * k)
