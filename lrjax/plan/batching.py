"""Equal work in one call: items grouped by a key, groups cut into equal, bounded batches."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

BATCH_BYTES = 1 << 28
"""Bound on the stacked operands of one batch; a single weight may exceed it alone."""


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with equal keys together, in order of first appearance."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def batches(items: Sequence[T], bytes_each: int) -> list[tuple[list[T], int]]:
    """Batches of one common size, and how many of each are real: the last repeats its last item.

    One size means one compilation for the group, however many items it has.
    """
    count = math.ceil(len(items) * bytes_each / BATCH_BYTES) or 1
    size = math.ceil(len(items) / min(count, len(items)))
    parts = [list(items[i : i + size]) for i in range(0, len(items), size)]
    return [(part + [part[-1]] * (size - len(part)), len(part)) for part in parts]
