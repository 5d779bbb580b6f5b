"""How well embeddings answer: recall of the right document, and closeness to the dense model's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def recall(
    queries: Float[np.ndarray, "n d"], documents: Float[np.ndarray, "n d"], at: Sequence[int]
) -> dict[int, float]:
    """Share of queries whose own document is among the k nearest, for each k.

    Row i of ``queries`` belongs to row i of ``documents``; nearest is by inner product, and a
    document that ties with the right one counts as nearer.
    """
    scores = queries @ documents.T
    own = np.diagonal(scores)[:, None]
    nearer = (scores >= own).sum(axis=1) - 1
    return {k: float((nearer < k).mean()) for k in at}


def cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """Mean cosine of the angle between row i of ``a`` and row i of ``b``."""
    inner = np.einsum("nd,nd->n", a, b)
    return float((inner / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).mean())
