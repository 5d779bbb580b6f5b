"""A batch row by row, where what lies between two steps is many times the activation's size.

Digits and terms make such intermediates: a train of rank 16 holds 32 numbers for every input.
Written to memory for a whole batch and read again, transposed, they take longer than the
arithmetic. Those of one row stay in the cache, and without the batch before them their labels
merge into matrices as they are. 512 rows of 768 x 3072, 16 Kronecker terms: 57 ms at once, 19 ms in
slices of 16 rows, 11 ms row by row, 11 ms dense.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lrjax.formats.choice import Choice
from lrjax.formats.step import best_layout, step_of

Labels = tuple[int, ...]
Labelled = tuple[Any, Labels]

LEAST_ROWS = 8
"""Fewest rows that are taken one by one."""

LEAST_WORK = 1 << 13
"""Entries of the largest intermediate of a row below which its products are too short."""


def row_label(
    arrays: Sequence[Labelled],
    steps: Sequence[tuple[int, int]],
    target: Labels,
) -> int | None:
    """The activation's label to take one by one; None where the batch is to stay whole.

    It stays whole on accelerators, whose batches want to be wide, where no intermediate is larger
    than both the activation and the result, and where the leading label is not one of rows.
    """
    if len(steps) < 2 or jax.default_backend() != "cpu":
        return None
    x, labels = arrays[0]
    if not jax.sharding.get_abstract_mesh().empty or not labels:
        return None
    axis = next((d for d, n in enumerate(x.shape) if n > 1), 0)
    row = labels[axis]
    sizes = {k: n for y, ls in arrays for k, n in zip(ls, y.shape, strict=True)}
    if target.count(row) != 1 or any(row in ls for _, ls in arrays[1:]):
        return None
    alive = [set(ls) for _, ls in arrays]
    gone: set[int] = set()
    between = []
    for i, j in steps:
        gone |= {i, j}
        rest = [ls for k, ls in enumerate(alive) if k not in gone]
        alive.append((alive[i] | alive[j]) & set(target).union(*rest))
        written = not any(_picks(arrays, a, alive[b]) for a, b in ((i, j), (j, i)))
        between.append(written * math.prod(sizes[k] for k in alive[-1]))
    most = max(between[:-1])
    many = sizes[row] >= LEAST_ROWS and most >= LEAST_WORK * sizes[row]
    return row if many and most > max(x.size, between[-1]) else None


def _picks(arrays: Sequence[Labelled], k: int, other: set[int]) -> bool:
    """Whether an operand is a choice that takes from the other: that is not written out."""
    if k >= len(arrays) or not isinstance(arrays[k][0], Choice):
        return False
    choice, labels = arrays[k]
    return set(labels[len(choice.outs) :]) <= other


def row_by_row(
    run: Callable[..., Array],
    arrays: Sequence[Labelled],
    steps: Sequence[tuple[int, int]],
    target: Labels,
    row: int,
) -> Array:
    """`run(arrays, target)` on every index of one label of the first array, put together again."""
    (x, labels), *others = arrays
    rest = tuple(k for k in labels if k != row)
    without = tuple(k for k in target if k != row)
    x = jnp.moveaxis(x, labels.index(row), 0)
    others = _laid_out(rest, others, steps, without)
    y = lax.map(lambda part: run([(part, rest), *others], without), x)
    return jnp.moveaxis(y, 0, target.index(row))


def _laid_out(
    labels: Labels, others: Sequence[Labelled], steps: Sequence[tuple[int, int]], target: Labels
) -> list[Labelled]:
    """The factors in the layouts that their steps want, once for all rows."""
    others = list(others)
    alive = dict(enumerate([labels, *(ls for _, ls in others)]))
    for made, (i, j) in enumerate(steps, len(alive)):
        la, lb = alive.pop(i), alive.pop(j)
        keep = set(target).union(*alive.values())
        la, lb = (tuple(k for k in x if k in keep | set(y)) for x, y in ((la, lb), (lb, la)))
        step = step_of(la, lb, keep)
        if 0 < j <= len(others) and isinstance(others[j - 1][0], jax.Array):
            y, own = others[j - 1]
            order = best_layout(lb, step) if step.summed else lb
            order = (*order, *(k for k in own if k not in order))
            others[j - 1] = (y.transpose([own.index(k) for k in order]), order)
        out = step.out if step.summed else la + tuple(k for k in lb if k not in la)
        alive[made] = out
    return others
