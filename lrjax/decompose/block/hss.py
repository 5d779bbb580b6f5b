"""HSS: nested bases from the blocks beside the diagonal, level by level, then least squares."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.block.cells import (
    check_grid,
    cut,
    inverse,
    is_separable,
    join,
    restrict,
    weigh,
)
from lrjax.decompose.block.outcome import ended, solved
from lrjax.decompose.block.refit import refit
from lrjax.errors import RankError, message
from lrjax.formats.hss import HSS
from lrjax.linalg import Info
from lrjax.linalg.info import Status
from lrjax.linalg.orthonormal import fix_signs
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import whiten
from lrjax.metrics import Metric

SWEEPS = 5
TOL = 1e-3

Factors = tuple[Array, ...]
"""The diagonal blocks, then left, coupling and right of every level, fine first."""


def hss(
    w: Float[Array, "*S m n"],
    ranks: Sequence[int],
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[HSS, Info]:
    """An HSS matrix near W, with a rank for each level, coarse first.

    The weight is at hand, so nothing is sampled: on each level, fine first, the truncated SVD of
    every whole block row without its diagonal block gives its basis, of every block column of what
    is left the other, and between bases the next level's blocks are few numbers. Losses of the
    projections add up; they are a small factor above the optimum, which no closed form has.
    Diagonal metrics weigh rows and columns before. A Gram couples blocks: each is then whitened by
    its own part of it, and least squares on the whole follow.

    Args:
      w: matrices [*S, m, n].
      ranks: one a level; the diagonal has 2^len(ranks) dense blocks.
      metric: what error means.
      sweeps: most sweeps of least squares.
      tol: relative decrease of the loss that ends them.

    Raises:
      ShapeError: 2^levels does not divide the matrix.
      RankError: a rank is above what its blocks have, or twice that of the next finer level.
    """
    return _solve(w, metric, sweeps, tol, ranks=check_levels(w.shape[-2:], ranks))


@functools.partial(jax.jit, static_argnames=("ranks",))
def _solve(w, metric, sweeps, tol, *, ranks: tuple[int, ...]):
    def single(w: Array, rows: Array | None, cols: Array | None):
        factors = nested(w, ranks, rows, cols)
        if is_separable(rows, cols) or not any(ranks):
            return factors, jnp.ones((), jnp.int32), jnp.asarray(int(Status.CONVERGED))
        factors, progress = refit(
            w, factors, form, _preconditioner(rows, cols, len(ranks)), rows, cols,
            sweeps=sweeps, tol=tol, exact=False,
        )  # fmt: skip
        return factors, progress.steps, ended(progress)

    return solved(w, metric, single, build, rescale)


def check_levels(matrix: tuple[int, ...], ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks that the levels of a matrix can have; raises ShapeError or RankError."""
    ranks = tuple(int(r) for r in ranks)
    levels = len(ranks)
    check_grid(matrix, (2**levels,) * 2, "HSS")
    below = (*(2 * r for r in ranks[1:]), min(matrix[-2:]) // 2**levels)
    for level, (r, most) in enumerate(zip(ranks, below, strict=False), 1):
        if not 0 <= r <= most:
            got, todo = f"rank {r} on level {level} of HSS", "Choose ranks in that range."
            reason = "the rows and columns of its blocks, twice the rank of the finer level"
            raise RankError(message(got=got, expected=f"0 to {most}, {reason}", todo=todo))
    return ranks


# ---- the start ---------------------------------------------------------------------------------


def nested(
    w: Float[Array, "m n"], ranks: Sequence[int], rows: Array | None, cols: Array | None
) -> Factors:
    """Bases, couplings and diagonal blocks under the restricted metric."""
    count = 2 ** len(ranks)
    grid = cut(w, (count, count))
    (up, back), (down, forth) = (_roots(restrict(side, count)) for side in (rows, cols))
    found = [grid[jnp.arange(count), jnp.arange(count)]]
    grid = weigh(grid, None if up is None else up[:, None], None if down is None else down[None])
    for rank in ranks[::-1]:
        left, right, grid = _project(grid, rank)
        found += [weigh(left, back, None), grid[_siblings(len(grid))], weigh(right, None, forth)]
        grid, back, forth = _paired(grid), None, None
    return tuple(found)


def _project(grid: Float[Array, "c c m n"], rank: int) -> tuple[Array, Array, Array]:
    """Bases of block rows and of block columns, and what lies between them."""
    c, _, m, n = grid.shape
    off = jnp.where(jnp.eye(c, dtype=bool)[..., None, None], 0, grid)
    left = _basis(off.swapaxes(1, 2).reshape(c, m, c * n), rank)
    off = dot(left.swapaxes(1, 2)[:, None], off)
    right = _basis(off.transpose(1, 3, 0, 2).reshape(c, n, c * rank), rank)
    return left, right.swapaxes(1, 2), dot(off, right)


def _basis(rows: Float[Array, "c m k"], rank: int) -> Float[Array, "c m r"]:
    """The leading left singular vectors; a triangle in place of a long side keeps all digits."""
    if not rank:
        return rows[..., :0]
    if rows.shape[-1] > rows.shape[-2]:
        rows = jnp.linalg.qr(rows.swapaxes(1, 2), mode="r").swapaxes(1, 2)
    left = jnp.linalg.svd(rows, full_matrices=False)[0][..., :rank]
    return jax.vmap(lambda u: fix_signs(u.T)[0].T)(left)


def _roots(side: Array | None) -> tuple[Array | None, Array | None]:
    """side^.5 and side^-.5 of a restricted side."""
    if side is None:
        return None, None
    if side.ndim == 3:
        return whiten(side)
    values = jnp.sqrt(jnp.maximum(side, 0))
    return values, jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1), 0)


# ---- the matrix of factors ---------------------------------------------------------------------


def build(factors: Factors) -> HSS:
    """The format; what lies above an empty basis is left out."""
    left = core = right = None
    for basis, coupling, other in _levels(factors)[::-1]:
        if basis.shape[-1]:
            core = HSS(coupling, left, core, right, siblings=True)
            left, right = basis, other
    return HSS(factors[0], left, core, right)


def form(factors: Factors) -> Float[Array, "m n"]:
    """The matrix."""
    count = factors[0].shape[0]
    same = jnp.arange(count)
    if len(factors) == 1:
        return factors[0][0]
    return join(_between(_levels(factors)[0], _cores(factors)[0]).at[same, same].add(factors[0]))


def rescale(factors: Factors, unit: Array) -> Factors:
    """Factors of `unit` times the matrix: the bases stay."""
    return tuple(x * unit if k == 0 or k % 3 == 2 else x for k, x in enumerate(factors))


def _levels(factors: Factors) -> list[tuple[Array, Array, Array]]:
    return list(zip(factors[1::3], factors[2::3], factors[3::3], strict=True))


def _cores(factors: Factors) -> list[Float[Array, "c c r q"]]:
    """What lies between the bases of each level, fine first."""
    *finer, coarsest = _levels(factors)
    c, r, q = coarsest[1].shape
    cores = [jnp.zeros((c, c, r, q), coarsest[1].dtype).at[_siblings(c)].add(coarsest[1])]
    for level, above in zip(finer[::-1], _levels(factors)[::-1], strict=False):
        core = _apart(_between(above, cores[-1]))
        cores.append(core.at[_siblings(len(core))].add(level[1]))
    return cores[::-1]


def _between(level: tuple[Array, Array, Array], core: Array) -> Float[Array, "c c m n"]:
    left, _, right = level
    return dot(dot(left[:, None], core), right)


def _siblings(count: int) -> tuple[Array, Array]:
    own = jnp.arange(count)
    return own, own ^ 1


def _paired(grid: Float[Array, "d d r q"]) -> Float[Array, "c c u v"]:
    c, _, r, q = grid.shape
    pairs = grid.reshape(c // 2, 2, c // 2, 2, r, q).transpose(0, 2, 1, 4, 3, 5)
    return pairs.reshape(c // 2, c // 2, 2 * r, 2 * q)


def _apart(grid: Float[Array, "c c u v"]) -> Float[Array, "d d r q"]:
    c, _, r, q = grid.shape
    halves = grid.reshape(c, c, 2, r // 2, 2, q // 2).transpose(0, 2, 1, 4, 3, 5)
    return halves.reshape(2 * c, 2 * c, r // 2, q // 2)


# ---- least squares -----------------------------------------------------------------------------


def _preconditioner(rows: Array | None, cols: Array | None, levels: int):
    """Normal equations of every block under its own part of the metric."""
    own = [restrict(side, 2**levels) for side in (rows, cols)]
    inverses = [inverse(side) for side in own]
    swap = lambda x: jnp.swapaxes(x, -1, -2)

    def precondition(factors: Factors, k: int, gradient: Array) -> Array:
        if k == 0:
            return weigh(gradient, *inverses)
        if not gradient.size:
            return gradient
        level, which = divmod(k - 1, 3)
        (a, g), (under, over) = own, inverses
        for depth, (left, _, right) in enumerate(_levels(factors)[: level + 1]):
            if depth:  # the metric of what is between the bases of the finer level
                a, g = _joined(inner), _joined(outer)
                under, over = inverse(a), inverse(g)
            inner = dot(swap(left), weigh(left, a, None))
            outer = dot(weigh(right, None, g), swap(right))
        if which == 1:
            return weigh(gradient, inverse(inner), inverse(outer[_siblings(len(outer))[1]]))
        core = _cores(factors)[level]
        if which == 0:
            normal = jnp.sum(dot(dot(core, outer), swap(core)), axis=1)
            return weigh(gradient, under, inverse(normal))
        normal = jnp.sum(dot(swap(core), dot(inner[:, None], core)), axis=0)
        return weigh(gradient, inverse(normal), over)

    return precondition


def _joined(sides: Float[Array, "d r r"]) -> Float[Array, "c u u"]:
    c, r, _ = sides.shape
    pairs = jnp.eye(2, dtype=sides.dtype)[:, None, :, None] * sides.reshape(c // 2, 2, r, 1, r)
    return pairs.reshape(c // 2, 2 * r, 2 * r)
