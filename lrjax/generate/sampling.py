"""How the next token is chosen from its logits."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrjax.errors import GenerationError, message


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """The likeliest token, the first of several."""

    def check(self) -> None:
        """Greedy choice has nothing to get wrong."""

    def __call__(
        self, logits: Float[Array, "batch vocab"], keys: Key[Array, " batch"]
    ) -> Int[Array, " batch"]:
        """A token for every row."""
        return jnp.argmax(logits, axis=-1)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p"],
    meta_fields=["top_k"],
)
@dataclass(frozen=True)
class Sample:
    """A token drawn from softmax(logits / temperature), cut to the likeliest.

    Attributes:
        temperature: above one evens the probabilities out, below one sharpens them.
        top_k: only the k likeliest are drawn from (arXiv:1805.04833).
        top_p: of those, the likeliest whose probabilities first sum to p (arXiv:1904.09751).
    """

    temperature: float | Any = 1.0
    top_k: int | None = None
    top_p: float | Any | None = None

    def check(self) -> None:
        """Refuses what is no distribution.

        Raises:
            GenerationError: a temperature or a cut is out of range.
        """
        for name, fits, expected in (
            ("temperature", 0 < self.temperature < float("inf"), "a number above 0; see Greedy"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1, or None"),
        ):
            if not fits:
                got, todo = repr(getattr(self, name)), "Correct the value."
                raise GenerationError(message(path=name, got=got, expected=expected, todo=todo))

    def __call__(
        self, logits: Float[Array, "batch vocab"], keys: Key[Array, " batch"]
    ) -> Int[Array, " batch"]:
        """A token for every row, by the row's key."""
        scaled = logits.astype(jnp.float32) / self.temperature
        if self.top_k is None:
            return jax.vmap(jax.random.categorical)(keys, self._likeliest(scaled))
        top, tokens = jax.lax.top_k(scaled, min(self.top_k, logits.shape[-1]))
        drawn = jax.vmap(jax.random.categorical)(keys, self._likeliest(top))
        return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]

    def _likeliest(self, logits: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
        """The logits, minus infinity where the likelier tokens have the probability p already."""
        if self.top_p is None:
            return logits
        p = jax.nn.softmax(logits, axis=-1)
        falling = jnp.flip(jnp.sort(p, axis=-1), axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling
        least = jnp.where(before < self.top_p, falling, 1).min(axis=-1, keepdims=True)
        return jnp.where(p >= least, logits, -jnp.inf)


Sampling = Greedy | Sample
