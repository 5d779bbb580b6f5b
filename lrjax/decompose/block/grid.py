"""Blocks of their own ranks: a truncated SVD of every block at once, then least squares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrjax.decompose.block.cells import (
    Grid,
    best_of_rank,
    check_grid,
    cut,
    inverse,
    is_separable,
    join,
    restrict,
    root,
    sides_of,
    weigh,
)
from lrjax.decompose.block.outcome import ended, solved
from lrjax.decompose.block.refit import refit
from lrjax.decompose.svd import balanced
from lrjax.errors import RankError, message
from lrjax.formats.block_low_rank import BlockLowRank
from lrjax.linalg import Info, singular_values
from lrjax.linalg.info import Status
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import solve_ridge
from lrjax.metrics import Metric

Blocks = tuple[Array, Array]

SWEEPS = 5
TOL = 1e-3

RANK_STEP = 32
"""Solves run at multiples of this rank: few distinct ranks, few compilations."""


def block_low_rank(
    w: Float[Array, "*S m n"],
    ranks: np.ndarray,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[BlockLowRank, Info]:
    """A grid of blocks of the given ranks near W.

    Each block is solved as if the others were exact: optimal where the metric has no terms between
    blocks (none, diagonals, block-diagonal Grams). Where it has, alternating least squares on the
    whole metric start there, and only lower the loss.

    All blocks are solved at one rank and cut to their own, so that it compiles once for all ranks
    up to a multiple of `RANK_STEP`.

    Args:
      w: matrices [*S, m, n].
      ranks: of the blocks, [p, q].
      metric: what error means.
      sweeps: most sweeps of least squares.
      tol: relative decrease of the loss that ends them.

    Raises:
      ShapeError: the grid does not divide the matrix.
      RankError: a rank is above what a block has.
    """
    ranks = check_ranks(w.shape[-2:], ranks, "BlockSVD")
    own = np.broadcast_to(ranks, (*w.shape[:-2], *ranks.shape))
    most = covering_rank(w.shape[-2:], ranks)
    found, info = covered(w, jnp.asarray(own), most, metric=metric, sweeps=sweeps, tol=tol)
    return found.trimmed(ranks.tolist()), info


def covered(
    w: Float[Array, "*S m n"],
    ranks: Int[Array, "*S p q"],
    most: int,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[BlockLowRank, Info]:
    """`block_low_rank`, all blocks held at rank `most`, with zeros beyond `ranks`, now values."""
    return _solve(w, ranks, metric, sweeps, tol, most=most)


def covering_rank(matrix: tuple[int, ...], ranks: np.ndarray) -> int:
    """The multiple of `RANK_STEP` above ranks [..., p, q], or all that a block has."""
    (*_, p, q), (m, n) = ranks.shape, matrix[-2:]
    return min(-(-int(ranks.max(initial=0)) // RANK_STEP) * RANK_STEP, m // p, n // q)


@functools.partial(jax.jit, static_argnames=("most",))
def _solve(w, ranks, metric, sweeps, tol, *, most: int):
    def single(w: Array, rows: Array | None, cols: Array | None, ranks: Array):
        return fit(w, ranks, most, rows, cols, sweeps=sweeps, tol=tol)

    return solved(w, metric, single, even, rescale, ranks)


def even(factors: Blocks) -> BlockLowRank:
    """Blocks of one rank, from factors [*S, p, q, m, r] and [*S, p, q, r, n]."""
    *_, p, q, _, rank = factors[0].shape
    return BlockLowRank.pack(*factors, [[rank] * q] * p)


def fit(
    w: Float[Array, "m n"],
    ranks: Int[Array, "p q"],
    most: int,
    rows: Array | None,
    cols: Array | None,
    *,
    sweeps: int | Array,
    tol: float | Array,
) -> tuple[Blocks, Array, Array]:
    """Factors [p, q, m, most] and [p, q, most, n] of one matrix, zero beyond the blocks' ranks.

    With them come iterations and status.
    """
    p, q = grid = (ranks.shape[0], ranks.shape[1])
    if most == 0:
        m, n = w.shape[0] // p, w.shape[1] // q
        empty = jnp.zeros((p, q, m, 0), w.dtype), jnp.zeros((p, q, 0, n), w.dtype)
        return empty, jnp.ones((), jnp.int32), jnp.asarray(int(Status.CONVERGED))
    own_rows, own_cols = sides_of(rows, cols, grid)
    left, right, s = best_of_rank(cut(w, grid), most, own_rows, own_cols)
    kept = jnp.arange(most) < ranks[..., None]
    start = jnp.where(kept[..., None, :], left, 0), jnp.where(kept[..., :, None], right, 0)
    surplus = jnp.any(kept & (s <= 32 * jnp.finfo(s.dtype).eps * jnp.max(s)))
    rank_status = jnp.where(surplus, int(Status.RANK_DEFICIENT), int(Status.CONVERGED))
    if is_separable(rows, cols):
        return start, jnp.ones((), jnp.int32), rank_status
    factors, progress = refit(
        w,
        start,
        lambda fs: join(dot(*fs)),
        _preconditioner(rows, cols, grid),
        rows,
        cols,
        sweeps=sweeps,
        tol=tol,
        exact=False,
    )
    return balanced(*factors), progress.steps, jnp.where(surplus, rank_status, ended(progress))


def _preconditioner(rows: Array | None, cols: Array | None, grid: Grid):
    """Normal equations of every block under the restricted metric."""
    rows, cols = restrict(rows, grid[0]), restrict(cols, grid[1])
    along_rows = lambda side: None if side is None else side[:, None]
    along_cols = lambda side: None if side is None else side[None]
    own = along_rows(rows), along_cols(cols)
    inverses = along_rows(inverse(rows)), along_cols(inverse(cols))

    def precondition(factors: tuple[Array, ...], k: int, gradient: Array) -> Array:
        left, right = factors
        swap = lambda x: jnp.swapaxes(x, -1, -2)
        if k == 0:
            normal = dot(weigh(right, None, own[1]), swap(right))
            return weigh(swap(solve_ridge(normal, swap(gradient))), inverses[0], None)
        normal = dot(swap(left), weigh(left, own[0], None))
        return weigh(solve_ridge(normal, gradient), None, inverses[1])

    return precondition


def rescale(factors: Blocks, unit: Array) -> Blocks:
    """Factors of `unit` times the matrix."""
    left, right = factors
    return left * jnp.sqrt(unit), right * jnp.sqrt(unit)


def whitened(
    w: Float[Array, "m n"], rows: Array | None, cols: Array | None, grid: Grid
) -> Float[Array, "p q a b"]:
    """A_pp^.5 W_pq G_qq^.5: the blocks, in which the restricted metric is the Frobenius norm."""
    p, q = grid
    lead = lambda side, axis: None if side is None else jnp.expand_dims(side, axis)
    own = lead(root(restrict(rows, p)), 1), lead(root(restrict(cols, q)), 0)
    return weigh(cut(w, grid), *own)


def spectra(
    w: Float[Array, "m n"], rows: Array | None, cols: Array | None, grid: Grid
) -> Float[Array, "p q k"]:
    """Singular values of the whitened blocks: tails of squares are restricted losses."""
    return singular_values(whitened(w, rows, cols, grid))


def check_ranks(matrix: tuple[int, ...], ranks: np.ndarray, kind: str) -> np.ndarray:
    """Ranks [p, q] that a matrix's blocks can have; raises ShapeError or RankError."""
    ranks = np.asarray(ranks, int)
    check_grid(matrix, ranks.shape, kind)
    m, n = matrix[-2] // ranks.shape[0], matrix[-1] // ranks.shape[1]
    if ranks.min() < 0 or ranks.max() > min(m, n):
        todo = "Choose ranks in that range."
        got = f"{kind} with ranks {ranks.min()} to {ranks.max()} for blocks {m} x {n}"
        raise RankError(message(got=got, expected=f"ranks from 0 to {min(m, n)}", todo=todo))
    return ranks
