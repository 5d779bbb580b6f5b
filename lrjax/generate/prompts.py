"""Prompts as rectangles: padded on the left, to one of few lengths."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Bool, Int

from lrjax.errors import GenerationError, message

Ids = Int[np.ndarray, "batch length"]
Mask = Bool[np.ndarray, "batch length"]


def pad(prompts: Sequence[Sequence[int]]) -> tuple[Ids, Mask]:
    """Prompts of any lengths as token ids and mask, padded on the left."""
    length = max(map(len, prompts), default=0)
    ids = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return ids, mask


def read(input_ids: Any, attention_mask: Any | None, vocab: int) -> tuple[Ids, Mask]:
    """The prompts with their padding, on whatever side it was, on the left.

    Raises:
        GenerationError: they are no batch of token ids of the vocabulary, a prompt is empty, or
            the mask does not fit.
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        got = f"{ids.dtype} of shape {ids.shape}"
        refuse("input_ids", got, "integers [batch, length]", "Give a batch of token ids.")
    mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask) > 0
    if mask.shape != ids.shape:
        todo = "Give a mask that is 1 at tokens, 0 at padding."
        refuse("attention_mask", f"shape {mask.shape}", f"shape {ids.shape}, input_ids'", todo)
    if not len(ids) or not mask.any(axis=1).all():
        rows = ", ".join(map(str, np.flatnonzero(~mask.any(axis=1)))) if len(ids) else "no rows"
        got = f"no token in row {rows}" if len(ids) else rows
        refuse("input_ids", got, "a token in every row", "Begin with a token, say, the first.")
    ids = np.where(mask, ids, 0)
    if ids.min() < 0 or ids.max() >= vocab:
        got, todo = f"ids from {ids.min()} to {ids.max()}", "Use the model's own tokenizer."
        refuse("input_ids", got, f"ids from 0 to {vocab - 1}", todo)
    order = np.argsort(mask, axis=1, kind="stable")
    ids, mask = (np.take_along_axis(x, order, axis=1) for x in (ids, mask))
    longest = int(mask.sum(axis=1).max())
    return ids[:, -longest:].astype(np.int32), mask[:, -longest:]


def rounded(length: int) -> int:
    """The length or a little more, one of few: a multiple of 32, or of an eighth to a quarter."""
    step = max(32, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def refuse(path: str, got: str, expected: str, todo: str) -> NoReturn:
    """Raises the error of a prompt or an option."""
    raise GenerationError(message(path=path, got=got, expected=expected, todo=todo))
