"""Texts -> batches of a few fixed shapes -> sentence embeddings.

Texts are sorted into buckets by length, and every batch of a bucket has one shape, so that a model
compiles once a bucket. All batches hold about the same number of tokens.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lrjax.errors import CheckpointError, message

LENGTHS = (24, 128)
"""Bucket lengths: four texts in five fit into the first; the last cuts what is longer. Each costs a
compilation, so there are two."""

TOKENS = 2048
"""Tokens a batch, padding included: enough for full matrix products, little enough for a cache."""


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``mask``, both ``[texts, length]``, and the positions of the texts in the source.

    The last batch of a bucket is filled up with empty texts: mask zero, no position.
    """

    ids: Int[np.ndarray, "texts length"]
    mask: Int[np.ndarray, "texts length"]
    positions: tuple[int, ...]


class Tokenizer:
    """The ``tokenizer.json`` of a checkpoint folder.

    Texts are cut at the longest bucket, or at the positions that ``config.json`` beside it allows.

    Raises:
        CheckpointError: the folder has no readable ``tokenizer.json``.
    """

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path = Path(folder) / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as reason:  # the library raises bare Exception
            raise CheckpointError(
                message(
                    path=str(path),
                    got=str(reason),
                    expected="a tokenizer.json",
                    todo="Copy the tokenizer of the published checkpoint beside the weights.",
                )
            ) from reason
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(LENGTHS[-1], _positions(Path(folder))))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, special tokens included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


def _positions(folder: Path) -> int:
    """How many tokens the model beside the tokenizer takes, if it says so."""
    try:
        return int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return LENGTHS[-1]


def batches(tokens: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Cuts tokenised texts into batches, the shortest first; none is longer than its texts."""
    shorter, longest = -1, max(map(len, tokens), default=1) or 1
    for length in sorted({min(length, longest) for length in LENGTHS}):
        rows = TOKENS // length
        bucket = [i for i, ids in enumerate(tokens) if shorter < len(ids) <= length]
        for start in range(0, len(bucket), rows):
            positions = tuple(bucket[start : start + rows])
            ids = np.zeros((rows, length), np.int32)
            mask = np.zeros((rows, length), np.int32)
            for row, i in enumerate(positions):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            yield Batch(ids, mask, positions)
        shorter = length


def encode(
    embed: Callable[[Any, Any, Any], Any],
    params: Any,
    given: Iterable[Batch],
    count: int,
    advance: Callable[[], Any] = lambda: None,
) -> Float[np.ndarray, "count d"]:
    """Embeddings of all texts in their own order, by ``embed(params, ids, mask) -> [texts, d]``."""
    rows: dict[int, np.ndarray] = {}
    for batch in given:
        embedded = np.asarray(embed(params, batch.ids, batch.mask))
        rows |= dict(zip(batch.positions, embedded, strict=False))
        advance()
    return np.stack([rows[i] for i in range(count)])
