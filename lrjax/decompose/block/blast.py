"""BLAST: alternating least squares with closed-form, batched normal equations."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.block.cells import (
    Grid,
    best_of_rank,
    check_grid,
    inverse,
    is_separable,
    join,
    restrict,
    weigh,
)
from lrjax.decompose.block.outcome import ended, solved
from lrjax.decompose.block.refit import refit
from lrjax.formats.blast import BLAST
from lrjax.linalg import Info
from lrjax.linalg.stack import dot
from lrjax.linalg.truncated import check_rank
from lrjax.linalg.whitening import solve_ridge
from lrjax.metrics import Metric

SWEEPS = 50
TOL = 1e-3


def blast(
    w: Float[Array, "*S m n"],
    rank: int,
    grid: Grid,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[BLAST, Info]:
    """A BLAST matrix near W (Lee et al., arXiv:2410.21262): min tr(D' rows D cols).

    Starts at the best matrix of that rank, which is a BLAST matrix whose couplings are one, so it
    is never worse. Then each of left, couplings and right in turn solves its own least squares: of
    order r for every block row, every block, every block column. That is the limit of the paper's
    preconditioned gradient steps; the rank may not exceed min(m, n).

    Args:
      w: matrices [*S, m, n].
      rank: r.
      grid: block rows and block columns.
      metric: what error means.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends them.

    Raises:
      ShapeError: the grid does not divide the matrix.
      RankError: a rank below 1 or above min(m, n).
    """
    check_grid(w.shape, grid, "BLAST")
    check_rank(rank, (w.shape[-2], w.shape[-1]))
    return _solve(w, metric, sweeps, tol, rank=rank, grid=grid)


@functools.partial(jax.jit, static_argnames=("rank", "grid"))
def _solve(w: Array, metric: Metric | None, sweeps: Array, tol: Array, *, rank: int, grid: Grid):
    p, q = grid

    def single(w: Array, rows: Array | None, cols: Array | None):
        left, right, _ = best_of_rank(w, rank, rows, cols)
        start = (
            left.reshape(p, -1, rank),
            jnp.ones((p, q, rank), w.dtype),
            right.reshape(rank, q, -1).swapaxes(0, 1),
        )
        factors, progress = refit(
            w, start, form, preconditioner(rows, cols, grid), rows, cols,
            sweeps=sweeps, tol=tol, exact=is_separable(rows, cols),
        )  # fmt: skip
        return factors, progress.steps, ended(progress)

    return solved(w, metric, single, lambda factors: BLAST(*factors), rescale)


def form(factors: tuple[Array, ...]) -> Float[Array, "m n"]:
    """The matrix of left [p, m, r], couplings [p, q, r] and right [q, r, n]."""
    left, couplings, right = factors
    return join(dot(left[:, None] * couplings[:, :, None, :], right[None]))


def preconditioner(rows: Array | None, cols: Array | None, grid: Grid):
    """Normal equations of every factor under the restricted metric."""
    rows, cols = restrict(rows, grid[0]), restrict(cols, grid[1])
    inverses = inverse(rows), inverse(cols)
    swap = lambda x: jnp.swapaxes(x, -1, -2)

    def precondition(factors: tuple[Array, ...], k: int, gradient: Array) -> Array:
        left, couplings, right = factors
        inner = dot(swap(left), weigh(left, rows, None))  # [p, r, r]
        outer = dot(weigh(right, None, cols), swap(right))  # [q, r, r]
        if k == 1:
            normal = inner[:, None] * outer[None]
            return solve_ridge(normal, gradient[..., None])[..., 0]
        if k == 0:
            normal = _mixed("qrs,pqr,pqs->prs", outer, couplings)
            return weigh(swap(solve_ridge(normal, swap(gradient))), inverses[0], None)
        normal = _mixed("prs,pqr,pqs->qrs", inner, couplings)
        return weigh(solve_ridge(normal, gradient), None, inverses[1])

    return precondition


def _mixed(pattern: str, gram: Array, couplings: Array) -> Array:
    return jnp.einsum(pattern, gram, couplings, couplings, precision="highest")


def rescale(factors: tuple[Array, ...], unit: Array) -> tuple[Array, ...]:
    """Factors of `unit` times the matrix."""
    left, couplings, right = factors
    return left * jnp.sqrt(unit), couplings, right * jnp.sqrt(unit)
