"""Sentence embeddings from an encoder's hidden states (Sentence-BERT, arXiv:1908.10084)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mean_pool(
    hidden: Float[Array, "*batch length d"], mask: Int[Array, "*batch length"]
) -> Float[Array, "*batch d"]:
    """The mean of the hidden states of real tokens: sum_t m_t h_t / sum_t m_t; zero if none is."""
    weight = mask.astype(hidden.dtype)
    total = jnp.einsum("...td,...t->...d", hidden, weight)
    return total / jnp.maximum(weight.sum(-1, keepdims=True), 1)


def unit(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Unit length, x / |x|; zero stays zero, with a zero gradient."""
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))
