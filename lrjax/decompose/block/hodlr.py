"""HODLR: a batched truncated SVD of each level's off-diagonal blocks, then least squares."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.block.cells import (
    best_of_rank,
    check_grid,
    cut,
    inverse,
    is_separable,
    restrict,
    root,
    weigh,
)
from lrjax.decompose.block.outcome import ended, solved
from lrjax.decompose.block.refit import refit
from lrjax.errors import RankError, message
from lrjax.formats.hodlr import HODLR
from lrjax.linalg import Info, singular_values
from lrjax.linalg.info import Status
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import solve_ridge
from lrjax.metrics import Metric

SWEEPS = 5
TOL = 1e-3


def hodlr(
    w: Float[Array, "*S m n"],
    ranks: Sequence[int],
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[HODLR, Info]:
    """A HODLR matrix near W, with a rank for each level, coarse first.

    The weight is at hand, so nothing is peeled or sampled: the blocks of all levels are disjoint,
    and the truncated SVD of each is the optimum, diagonal metrics included. A Gram couples blocks:
    each is then solved under its own part of it, and least squares on the whole follow.

    Args:
      w: matrices [*S, m, n].
      ranks: one a level; the diagonal has 2^len(ranks) dense blocks.
      metric: what error means.
      sweeps: most sweeps of least squares.
      tol: relative decrease of the loss that ends them.

    Raises:
      ShapeError: 2^levels does not divide the matrix.
      RankError: a rank is above what its blocks have.
    """
    return _solve(w, metric, sweeps, tol, ranks=check_levels(w.shape[-2:], ranks))


@functools.partial(jax.jit, static_argnames=("ranks",))
def _solve(w, metric, sweeps, tol, *, ranks: tuple[int, ...]):
    levels = len(ranks)

    def single(w: Array, rows: Array | None, cols: Array | None):
        diagonal = _diagonal(w, 2**levels)
        start = [_level(w, k + 1, r, rows, cols) for k, r in enumerate(ranks)]
        factors = (diagonal, *(x for pair in start for x in pair))
        done = jnp.ones((), jnp.int32), jnp.asarray(int(Status.CONVERGED))
        if is_separable(rows, cols) or not levels:
            return factors, *done
        factors, progress = refit(
            w, factors, form, _preconditioner(rows, cols, levels), rows, cols,
            sweeps=sweeps, tol=tol, exact=False,
        )  # fmt: skip
        return factors, progress.steps, ended(progress)

    build = lambda factors: HODLR(factors[0], factors[1::2], factors[2::2])
    return solved(w, metric, single, build, rescale)


def form(factors: tuple[Array, ...]) -> Float[Array, "m n"]:
    """The matrix of the diagonal and of (left, right) of each level, coarse first."""
    w = factors[0]
    for left, right in list(zip(factors[1::2], factors[2::2], strict=True))[::-1]:
        off = dot(left, right[_siblings(left.shape[0])])  # block i is beside the diagonal one
        own, far = (x.reshape(-1, 2, *x.shape[1:]) for x in (w, off))
        top = jnp.concatenate([own[:, 0], far[:, 0]], axis=-1)
        w = jnp.concatenate([top, jnp.concatenate([far[:, 1], own[:, 1]], axis=-1)], axis=-2)
    return w[0]


def level_spectra(
    w: Float[Array, "m n"], rows: Array | None, cols: Array | None, levels: int
) -> Float[Array, "L k"]:
    """For each level, roots of the energies of its blocks' i-th singular values, whitened."""
    found = []
    for level in range(1, levels + 1):
        blocks, own_rows, own_cols = _off(w, level, rows, cols)
        values = singular_values(weigh(blocks, root(own_rows), root(own_cols)))
        found.append(jnp.sqrt(jnp.sum(values**2, axis=0)))
    size = max(x.shape[0] for x in found)
    return jnp.stack([jnp.pad(x, (0, size - x.shape[0])) for x in found])


def check_levels(matrix: tuple[int, ...], ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks that the levels of a matrix can have; raises ShapeError or RankError."""
    ranks = tuple(int(r) for r in ranks)
    check_grid(matrix, (2 ** len(ranks),) * 2, "HODLR")
    for level, r in enumerate(ranks, 1):
        most = min(matrix[-2:]) // 2**level
        if not 0 <= r <= most:
            got, todo = f"rank {r} on level {level} of HODLR", "Choose ranks in that range."
            raise RankError(message(got=got, expected=f"0 to {most}", todo=todo))
    return ranks


def _siblings(count: int) -> Array:
    return jnp.arange(count) ^ 1


def _diagonal(w: Array, count: int) -> Array:
    blocks = jnp.arange(count)
    return cut(w, (count, count))[blocks, blocks]


def _off(w: Array, level: int, rows: Array | None, cols: Array | None) -> tuple[Any, Any, Any]:
    """Off-diagonal blocks of a level by block row, and what each meets of the metric."""
    count = 2**level
    blocks = cut(w, (count, count))[jnp.arange(count), _siblings(count)]
    cols = restrict(cols, count)
    return blocks, restrict(rows, count), None if cols is None else cols[_siblings(count)]


def _level(w: Array, level: int, rank: int, rows: Array | None, cols: Array | None):
    """Factors of a level: left by block row, right by block column."""
    blocks, rows, cols = _off(w, level, rows, cols)
    count, m, n = blocks.shape
    if not rank:
        return jnp.zeros((count, m, 0), w.dtype), jnp.zeros((count, 0, n), w.dtype)
    left, right, _ = best_of_rank(blocks, rank, rows, cols)
    return left, right[_siblings(count)]


def _preconditioner(rows: Array | None, cols: Array | None, levels: int):
    """Normal equations of every block under its own part of the metric."""
    parts = [(restrict(rows, 2**k), restrict(cols, 2**k)) for k in (levels, *range(1, levels + 1))]
    inverses = [(inverse(a), inverse(g)) for a, g in parts]
    swap = lambda x: jnp.swapaxes(x, -1, -2)

    def precondition(factors: tuple[Array, ...], k: int, gradient: Array) -> Array:
        if k == 0:
            return weigh(gradient, *inverses[0])
        level = (k + 1) // 2
        left, right = factors[2 * level - 1], factors[2 * level]
        if left.shape[-1] == 0:
            return gradient
        other = _siblings(left.shape[0])
        if k % 2:
            normal = dot(weigh(right, None, parts[level][1]), swap(right))[other]
            return weigh(swap(solve_ridge(normal, swap(gradient))), inverses[level][0], None)
        normal = dot(swap(left), weigh(left, parts[level][0], None))[other]
        return weigh(solve_ridge(normal, gradient), None, inverses[level][1])

    return precondition


def rescale(factors: tuple[Array, ...], unit: Array) -> tuple[Array, ...]:
    """Factors of `unit` times the matrix."""
    return (factors[0] * unit, *(x * jnp.sqrt(unit) for x in factors[1:]))
