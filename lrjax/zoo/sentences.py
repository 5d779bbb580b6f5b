"""Sentence embeddings from an encoder's hidden states (Sentence-BERT, arXiv:1908.10084)."""

from collections.abc import Callable
from typing import Any

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


def sentence_embedder(model: Any) -> Callable[[Any, Any, Any], Array]:
    """The pure function ``embed(params, input_ids, attention_mask) -> [texts, d]`` of an encoder.

    The mean of the last hidden states, at unit length, so that inner products are cosines.
    """

    def embed(
        params: Any,
        input_ids: Int[Array, "texts length"],
        attention_mask: Int[Array, "texts length"],
    ) -> Float[Array, "texts d"]:
        hidden = model.apply({"params": params}, input_ids, attention_mask)
        return unit(mean_pool(hidden, attention_mask))

    return embed
