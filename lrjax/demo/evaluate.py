"""Measures a sentence encoder on held-out pairs: what it answers, and how fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lrjax.demo.encode import Batch, encode
from lrjax.demo.retrieval import cosine, recall

AT = (1, 10)


@dataclass(frozen=True)
class Task:
    """Queries and documents in batches, to be embedded by ``embed(params, ids, mask)``.

    Text i < ``pairs`` is a query, text ``pairs + i`` the document that answers it.
    """

    embed: Callable[[Any, Any, Any], jax.Array]
    batches: tuple[Batch, ...]
    pairs: int

    def embeddings(
        self, params: Any, advance: Callable[[], Any] = lambda: None
    ) -> Float[np.ndarray, "texts d"]:
        """Embeddings of all texts in their order; ``advance()`` after each batch."""
        return encode(self.embed, params, self.batches, 2 * self.pairs, advance)

    def scores(
        self, found: Float[np.ndarray, "texts d"], dense: Float[np.ndarray, "texts d"]
    ) -> tuple[float, dict[int, float]]:
        """Mean cosine of the documents to the dense model's, and recall of each query's own."""
        queries, documents = found[: self.pairs], found[self.pairs :]
        return cosine(documents, dense[self.pairs :]), recall(queries, documents, AT)

    def speeds(
        self, models: Mapping[str, Any], advance: Callable[[], Any] = lambda: None, rounds: int = 2
    ) -> dict[str, float]:
        """Texts a second of each model: the best of a few rounds in which the models take turns."""
        sample = self.sample
        best = dict.fromkeys(models, float("inf"))
        for _ in range(rounds):
            for name, params in models.items():
                start = time.perf_counter()
                jax.block_until_ready([self.embed(params, b.ids, b.mask) for b in sample])
                best[name] = min(best[name], time.perf_counter() - start)
                advance()
        count = sum(len(b.positions) for b in sample)
        return {name: count / seconds for name, seconds in best.items()}

    @property
    def sample(self) -> Sequence[Batch]:
        """Every fourth batch: the same mix of lengths in less time."""
        return self.batches[::4]
