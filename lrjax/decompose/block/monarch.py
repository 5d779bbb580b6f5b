"""Monarch: the closed-form projection, an SVD of every slice, then least squares under a metric."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.decompose.block.cells import Grid, check_grid
from lrjax.decompose.block.grid import check_ranks, fit, rescale
from lrjax.decompose.block.outcome import solved
from lrjax.errors import RankError, message
from lrjax.formats.monarch import Monarch
from lrjax.linalg import Info
from lrjax.metrics import Metric

SWEEPS = 5
TOL = 1e-3


def monarch(
    w: Float[Array, "*S m n"],
    grid: Grid,
    rank: int = 1,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[Monarch, Info]:
    """The Monarch matrix nearest to W (Dao et al., arXiv:2204.00595).

    Slice (i, k) of W, the rows of run i and every q-th column from k, is left[i, :, k] times
    right[k, i], and no two slices share a factor: the truncated SVD of every slice is the
    optimum, and under diagonal metrics too. Under others it starts least squares on the whole.

    Args:
      w: matrices [*S, m, n].
      grid: p and q, the number of blocks of the two factors.
      rank: width of the inner blocks; 1 is the paper's form.
      metric: what error means.
      sweeps: most sweeps of least squares.
      tol: relative decrease of the loss that ends them.

    Raises:
      ShapeError: the grid does not divide the matrix.
      RankError: the rank is below 1 or above what a slice has.
    """
    check_rank(w.shape[-2:], grid, rank)
    return _solve(w, metric, sweeps, tol, grid=tuple(grid), rank=rank)


def check_rank(matrix: tuple[int, ...], grid: Grid, rank: int) -> None:
    """Check that slices can have the rank; raises ShapeError or RankError."""
    check_grid(matrix, grid, "Monarch")
    if rank < 1:
        todo = "Choose a rank of at least 1."
        raise RankError(message(got=f"Monarch of rank {rank}", expected="at least 1", todo=todo))
    check_ranks(matrix, np.full(grid, rank), "Monarch")


@functools.partial(jax.jit, static_argnames=("grid", "rank"))
def _solve(w, metric, sweeps, tol, *, grid: Grid, rank: int):
    def single(w: Array, rows: Array | None, cols: Array | None):
        return fit(sorted_columns(w, grid), jnp.full(grid, rank), rank, rows,
                   sorted_side(cols, grid), sweeps=sweeps, tol=tol)  # fmt: skip

    def build(factors: tuple[Array, Array]) -> Monarch:
        left, right = factors
        return Monarch(left.swapaxes(-3, -2), right.swapaxes(-4, -3))

    return solved(w, metric, single, build, rescale)


def sorted_columns(w: Float[Array, "*S m n"], grid: Grid) -> Float[Array, "*S m n"]:
    """Columns by their block of the second factor: every q-th together."""
    *lead, n = w.shape
    return w.reshape(*lead, n // grid[1], grid[1]).swapaxes(-1, -2).reshape(w.shape)


def sorted_side(cols: Array | None, grid: Grid) -> Array | None:
    """A metric's column side in that order."""
    if cols is None:
        return None
    cols = sorted_columns(cols, grid)
    return cols if cols.ndim == 1 else jnp.swapaxes(sorted_columns(cols.T, grid), 0, 1)
