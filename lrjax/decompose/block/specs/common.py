"""What the block specs share: candidate grids, columns of options, blocks on the host."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lrjax.decompose.block.cells import Grid, check_grid
from lrjax.decompose.spec import Options, Spec
from lrjax.errors import RankError, message
from lrjax.linalg.stack import over_stack, working
from lrjax.metrics import Metric

DEEPEST = 5
"""Most levels of a hierarchy that a plan proposes."""

SMALLEST = 8
"""Least rows and columns of a block that a plan proposes."""


def blocks_of(w: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """The blocks of a matrix [*S, m, n], row by row."""
    return [x for row in np.split(w, grid[0], axis=-2) for x in np.split(row, grid[1], axis=-1)]


def choices(options: Iterable[Any], spec: Spec, shape: Sequence[int]) -> list[Any]:
    """What there is to choose from; RankError if the weight can be cut by no grid."""
    found = [x for x in options if x is not None]
    if not found:
        got = f"a {shape[-2]} x {shape[-1]} matrix for {type(spec).__name__}"
        expected, todo = "sides that a grid divides", "Choose another format, or give a grid."
        raise RankError(message(got=got, expected=expected, todo=todo))
    return found


def candidates(matrix: Sequence[int], sides: Sequence[int], least: int = SMALLEST):
    """The square grids that divide a matrix into blocks that are not too small."""
    m, n = matrix
    return tuple((b, b) for b in sides if m % b == n % b == 0 and min(m, n) >= least * b)


def given_grid(spec: Any, matrix: Sequence[int]) -> tuple[Grid, ...]:
    """The one grid that a spec gives; ShapeError if it does not divide the matrix."""
    check_grid(tuple(matrix), spec.grid, type(spec).__name__)
    return (spec.grid,)


def depths(matrix: Sequence[int]) -> tuple[int, ...]:
    """How often a matrix may halve before its blocks are too small."""
    grids = candidates(matrix, tuple(2**k for k in range(1, DEEPEST + 1)))
    return tuple(p.bit_length() - 1 for p, _ in grids)


def each_matrix(w: Array, metric: Metric, measure: Any) -> Array:
    """`measure(w, rows, cols)` of every matrix of a stack."""
    rows, cols = metric.broadcast(w.shape[:-2]).arrays()
    sides = [None if x is None else working(x) for x in (rows, cols)]
    return over_stack(measure, [working(w), *sides], core=2)


def padded(values: list[Array], w: Array) -> Array:
    """Arrays [*S, ...] of different sizes, one behind the other on a new axis after S."""
    stack = w.ndim - 2
    if not values:
        return jnp.zeros((*w.shape[:-2], 0, 0, 0))
    most = [max(v.shape[d] for v in values) for d in range(stack, values[0].ndim)]
    fill = lambda v: (
        [(0, 0)] * stack + [(0, a - b) for a, b in zip(most, v.shape[stack:], strict=True)]
    )
    return jnp.stack([jnp.pad(v, fill(v)) for v in values], axis=stack)


def with_squares(
    grids: tuple[Grid, ...], spectrum: Any, axes: int
) -> list[tuple[Grid, np.ndarray]]:
    """Each grid and its squares, summed over a stack; the last `axes` axes stay."""
    if not grids:
        return []
    values = np.asarray(spectrum, np.float64)
    squares = np.sum(values.reshape(-1, *values.shape[values.ndim - axes :]) ** 2, axis=0)
    return list(zip(grids, squares, strict=True))


def options_of(rows: Sequence[tuple], count: int) -> Options:
    """Columns from (code, params, flops, error) rows, codes filled with zeros."""
    if not rows:
        return Options(np.zeros((0, 3), int), *(np.zeros(0) for _ in range(3)))  # pyright: ignore
    codes, params, flops, error = zip(*rows, strict=True)
    ranks = np.zeros((len(codes), max(map(len, codes))), int)
    for i, code in enumerate(codes):
        ranks[i, : len(code)] = code
    return Options(ranks, count * np.array(params), count * np.array(flops), np.array(error))


def unplanned(spec: Spec, expected: str, example: str) -> RankError:
    """The error of a spec that is solved before it has its size."""
    todo = f"Plan it, or give them, e.g. {example}."
    return RankError(message(got=repr(spec), expected=expected, todo=todo))
