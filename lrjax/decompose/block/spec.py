"""The block specs: which grid, which ranks, and the options that the planner compares."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lrjax.decompose.block import grid as blocks
from lrjax.decompose.block.blast import blast
from lrjax.decompose.block.cells import Grid, check_grid, join
from lrjax.decompose.block.grid import block_low_rank
from lrjax.decompose.block.hodlr import check_levels, hodlr, level_spectra
from lrjax.decompose.block.monarch import monarch, sorted_columns, sorted_side
from lrjax.decompose.block.outcome import with_total
from lrjax.decompose.block.share import ladder, lost
from lrjax.decompose.probe import rank_curve
from lrjax.decompose.spec import Options, Spec, solve, solve_covering
from lrjax.errors import RankError, message
from lrjax.formats.blast import BLAST as BlastWeight
from lrjax.formats.block_low_rank import BlockLowRank, packed_size
from lrjax.formats.hodlr import HODLR as HodlrWeight
from lrjax.formats.layout import Layout
from lrjax.formats.monarch import Monarch as MonarchWeight
from lrjax.linalg import Info
from lrjax.linalg.stack import over_stack, working
from lrjax.metrics import Metric

GRIDS = (2, 4, 8)
"""Blocks a side that the plan compares; finer ones have gathers as long as their products."""

MONARCH_GRIDS = (4, 8, 16, 32, 64)
"""Blocks a side of Monarch matrices; near the root of the side they are smallest."""

SMALLEST = 8
"""Least rows and columns of a block that a plan proposes."""

DEEPEST = 5
"""Most levels of HODLR that a plan proposes."""

PROBE_SWEEPS = 12


@dataclasses.dataclass(frozen=True, repr=False)
class BlockSVD(Spec):
    """W = p x q low-rank blocks, their ranks by one threshold over all their singular values.

    Attributes:
        ranks: of the blocks, row by row; one number for all; or left to the plan.
        grid: (p, q), or left to the plan, which compares a few.
        sweeps: most sweeps of least squares under a metric that couples blocks.
        tile: terms of a block row, and of a block column, come in multiples of it; the plan's.
    """

    ranks: tuple[int, ...] | int | None = None
    grid: Grid | None = None
    sweeps: int = dataclasses.field(default=blocks.SWEEPS, kw_only=True)

    tile: int = dataclasses.field(default=1, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Singular values of all blocks of each candidate grid, whitened, [*S, g, p q, k]."""
        grids = self._grids(w.shape[-2:])
        values = [_each(w, metric, functools.partial(blocks.spectra, grid=g)) for g in grids]
        return _padded([with_total(_flat(v), metric.loss(w), 2) for v in values], w)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(p, q, ranks row by row) for many thresholds on each candidate grid.

        The error is exact where the metric has no terms between blocks; else it leaves them out.
        """
        *stack, m, n = layout.matrix_shape(shape)
        rows = []
        for (p, q), squares in _pairs(self._grids((m, n)), spectrum, 3):
            own = squares[: p * q, : min(m // p, n // q)].reshape(p, q, -1)
            for ranks in (
                ladder(own, self.tile) if self.ranks is None else [self._given_ranks((p, q))]
            ):
                blocks.check_ranks((m, n), ranks, "BlockSVD")
                params = packed_size(ranks, m // p, n // q)
                if params < m * n or self.ranks is not None:
                    code = (p, q, *ranks.reshape(-1).tolist())
                    rows.append((code, params, 2 * params, lost(own, ranks)))
        return _options(rows, math.prod(stack))

    def with_rank(self, rank: Any) -> Self:
        """The spec with this grid and these ranks."""
        p, q, *ranks = (int(r) for r in rank)
        return dataclasses.replace(self, ranks=tuple(ranks[: p * q]), grid=(p, q))

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`options` has seen to it."""
        return True

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The blocks of every candidate grid."""
        return [x for grid in self._grids(w.shape[-2:]) for x in _blocks_of(w, grid)]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Block by block, on the grid that is smallest so."""
        found, (m, n) = list(ranks), shape[-2:]
        grids = self._grids((m, n))
        own = [np.array([found.pop(0) for _ in range(p * q)]).reshape(p, q) for p, q in grids]
        size = lambda pair: packed_size(pair[1], m // pair[0][0], n // pair[0][1])
        (p, q), best = min(_found(zip(grids, own, strict=True), self, shape), key=size)
        return self.with_rank((p, q, *best.reshape(-1).tolist()))

    @property
    def block_ranks(self) -> np.ndarray:
        """The ranks of all blocks, [p, q]; RankError where grid or ranks are not given."""
        if self.ranks is None or self.grid is None:
            raise _unplanned(self, "a grid and ranks", "BlockSVD(16, (4, 4))")
        return self._given_ranks(self.grid)

    @property
    def family(self) -> Spec:
        """All ranks on one grid."""
        return dataclasses.replace(self, ranks=1, tile=1)

    def covering(self, specs: Sequence[Spec], shape: Sequence[int]) -> tuple[Spec, np.ndarray]:
        """The largest rank of all for every block."""
        ranks = np.stack([spec.block_ranks for spec in specs])  # pyright: ignore
        most = blocks.covering_rank(tuple(shape), ranks)
        return dataclasses.replace(self, ranks=most, tile=1), ranks

    def _grids(self, matrix: Sequence[int]) -> tuple[Grid, ...]:
        return _candidates(matrix, GRIDS) if self.grid is None else _given(self, matrix)

    def _given_ranks(self, grid: Grid) -> np.ndarray:
        ranks = np.asarray(self.ranks, int)
        if ranks.ndim and ranks.size != grid[0] * grid[1]:
            expected = f"one number, or {grid[0] * grid[1]} for a grid of {grid}"
            todo = "Give them row by row."
            raise RankError(message(got=f"{ranks.size} ranks", expected=expected, todo=todo))
        return np.broadcast_to(ranks.reshape(grid if ranks.ndim else ()), grid)


@dataclasses.dataclass(frozen=True, repr=False)
class Monarch(Spec):
    """W = two block-diagonal matrices and permutations, in closed form.

    Attributes:
        rank: width of the inner blocks; 1 is the paper's form; or left to the plan.
        grid: (p, q), the blocks of both factors, or left to the plan, which compares a few.
        sweeps: most sweeps of least squares under a metric that couples blocks.
    """

    rank: int | None = None
    grid: Grid | None = None
    sweeps: int = dataclasses.field(default=blocks.SWEEPS, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Roots of the energies that each rank takes of all slices, for each grid, [*S, g, k]."""

        def values(w, rows, cols, grid):
            found = blocks.spectra(sorted_columns(w, grid), rows, sorted_side(cols, grid), grid)
            return jnp.sqrt(jnp.sum(found**2, axis=(0, 1)))

        grids = self._grids(w.shape[-2:])
        found = [_each(w, metric, functools.partial(values, grid=g)) for g in grids]
        return _padded([with_total(v, metric.loss(w), 1) for v in found], w)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(rank, p, q) for every candidate grid and rank below break-even."""
        *stack, m, n = layout.matrix_shape(shape)
        rows = []
        for (p, q), squares in _pairs(self._grids((m, n)), spectrum, 2):
            tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            price, most = q * m + p * n, min(m // p, n // q)
            ranks = range(1, min(most, (m * n - 1) // price) + 1)
            for r in ranks if self.rank is None else (self.rank,):
                blocks.check_ranks((m, n), np.full((p, q), r), "Monarch")
                rows.append(((r, p, q), r * price, 2 * r * price, tails[r]))
        return _options(rows, math.prod(stack))

    def with_rank(self, rank: Any) -> Self:
        """The spec with this (rank, p, q)."""
        r, *grid = np.atleast_1d(rank).tolist()
        return dataclasses.replace(self, rank=r, grid=tuple(grid) or self.grid)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """The inner blocks are p r and q r wide."""
        r, p, q = rank
        return p * r % tile == q * r % tile == 0

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The slices of every candidate grid, [*S, p q, m / p, n / q] each."""
        grids = self._grids(w.shape[-2:])
        order = lambda grid: np.asarray(sorted_columns(jnp.asarray(w), grid), np.float64)
        cut = lambda grid: np.stack(_blocks_of(order(grid), grid), axis=-3)
        return [cut(grid) for grid in grids]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The largest rank of a grid's slices, on the grid that is smallest so."""
        m, n = shape[-2:]
        pairs = zip(ranks, self._grids((m, n)), strict=True)
        size = lambda pair: pair[0] * (pair[1][1] * m + pair[1][0] * n)
        r, grid = min(_found(pairs, self, shape), key=size)
        return self.with_rank((r, *grid))

    def _grids(self, matrix: Sequence[int]) -> tuple[Grid, ...]:
        return _candidates(matrix, MONARCH_GRIDS, 1) if self.grid is None else _given(self, matrix)


@dataclasses.dataclass(frozen=True, repr=False)
class BLAST(Spec):
    """W = blocks that share left factors along rows and right ones along columns.

    Attributes:
        rank: r, or left to the plan.
        grid: (p, q); by default 4 x 4, or 2 x 2 where 4 does not divide.
        sweeps: most sweeps of alternating least squares.
    """

    rank: int | None = None
    grid: Grid | None = None
    sweeps: int = dataclasses.field(default=50, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """The blocks whitened by what they meet of the metric: its loss is a Frobenius norm."""
        grid = self._grid(w.shape[-2:])
        if grid is None:
            return working(w)
        white = _each(w, metric, functools.partial(blocks.whitened, grid=grid))
        return with_total(join(white), metric.loss(w), 2)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(rank, p, q) below break-even with the losses of short fits, interpolated."""
        *stack, m, n = layout.matrix_shape(shape)
        grid = self._grid((m, n))
        if grid is None:
            return _options([], 1)
        p, q = grid
        w = jnp.asarray(spectrum, jnp.float32).reshape(-1, m, n)
        fit = lambda r: blast(w, r, grid, sweeps=PROBE_SWEEPS, tol=1e-2)[1]
        loss = lambda r: float(jnp.sum(fit(r).residual ** 2))
        price = m + p * q + n
        if self.rank is None:
            ranks, error = rank_curve(min(m, n, (m * n - 1) // price), loss)
        else:
            ranks, error = np.array([self.rank]), np.array([loss(self.rank)])
        rows = [((r, p, q), r * price, 2 * r * price, e) for r, e in zip(ranks, error, strict=True)]
        return _options(rows, math.prod(stack))

    def with_rank(self, rank: Any) -> Self:
        """The spec with this (rank, p, q)."""
        r, *grid = np.atleast_1d(rank).tolist()
        return dataclasses.replace(self, rank=r, grid=tuple(grid) or self.grid)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """The rank is what products sum over."""
        return rank[0] % tile == 0

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """Whole block rows and block columns: the rank is no less than theirs."""
        p, q = self._grid(w.shape[-2:]) or (1, 1)
        return [*np.split(w, p, axis=-2), *np.split(w, q, axis=-1)]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The largest."""
        ((p, q),) = _found([self._grid(shape[-2:])], self, shape)
        return self.with_rank((max(ranks), p, q))

    def _grid(self, matrix: Sequence[int]) -> Grid | None:
        if self.grid is not None:
            check_grid(tuple(matrix), self.grid, "BLAST")
            return self.grid
        return max(_candidates(matrix, (2, 4)), default=None)


@dataclasses.dataclass(frozen=True, repr=False)
class HODLR(Spec):
    """W = dense diagonal blocks, and off-diagonal ones of low rank level by level.

    Attributes:
        ranks: of each level, coarse first; or left to the plan.
        levels: how often W halves, or left to the plan.
        sweeps: most sweeps of least squares under a metric that couples blocks.
        tile: ranks are multiples of it; the plan's.
    """

    ranks: tuple[int, ...] | None = None
    levels: int | None = None
    sweeps: int = dataclasses.field(default=blocks.SWEEPS, kw_only=True)

    tile: int = dataclasses.field(default=1, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Roots of the energies that each rank takes of a level's blocks, [*S, L, k].

        The scale is the metric's own, and not made to sum to anything: the diagonal stays dense.
        """
        levels = max(self._depths(w.shape[-2:]), default=0)
        if not levels:
            return jnp.zeros((*w.shape[:-2], 1, 1))
        return _each(w, metric, functools.partial(level_spectra, levels=levels))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(levels, ranks) by one threshold over all levels, for every depth and number of ranks.

        A rank costs m + n parameters on every level, so the largest energies are the best.
        """
        *stack, m, n = layout.matrix_shape(shape)
        energy = np.asarray(spectrum, np.float64).reshape(-1, *np.shape(spectrum)[-2:]) ** 2
        rows = []
        for depth in self._depths((m, n)):
            squares = energy.sum(0)[:depth]
            caps = np.array([min(m, n) // 2**k for k in range(1, depth + 1)])
            diagonal = m * n // 2**depth
            for ranks in self._ladder(squares, caps, (m * n - 1 - diagonal) // (m + n)):
                params = diagonal + int(ranks.sum()) * (m + n)
                kept = np.arange(squares.shape[1]) < ranks[:, None]
                flops = 2 * params + depth * n
                rows.append(((depth, *ranks.tolist()), params, flops, squares[~kept].sum()))
        return _options(rows, math.prod(stack))

    def with_rank(self, rank: Any) -> Self:
        """The spec with these (levels, ranks)."""
        levels, *ranks = (int(r) for r in rank)
        return dataclasses.replace(self, ranks=tuple(ranks[:levels]), levels=levels)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`options` has seen to it."""
        return True

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The blocks beside the diagonal, level by level, [*S, 2^l, m_l, n_l] each."""
        deepest = max(self._depths(w.shape[-2:]), default=0)
        grids = [(2**k, 2**k) for k in range(1, deepest + 1)]
        beside = lambda g, blocks: np.stack([blocks[g * i + (i ^ 1)] for i in range(g)], axis=-3)
        return [beside(g, _blocks_of(w, (g, g))) for g, _ in grids]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Level by level, at the depth that is smallest so."""
        m, n = shape[-2:]
        depths = _found(self._depths((m, n)), self, shape)
        size = lambda depth: m * n // 2**depth + sum(ranks[:depth]) * (m + n)
        depth = min(depths, key=size)
        return self.with_rank((depth, *ranks[:depth]))

    def _ladder(self, squares: np.ndarray, caps: np.ndarray, most: int) -> list[np.ndarray]:
        if self.ranks is not None:
            return [np.array(self.ranks)]
        depth, steps = len(caps), squares.shape[1] // self.tile
        gains = squares[:, : steps * self.tile].reshape(depth, steps, self.tile).sum(-1)
        usable = np.arange(steps) < caps[:, None] // self.tile
        order = np.argsort(-np.where(usable, gains, -1).reshape(-1), kind="stable")
        level = order[: int(usable.sum())] // max(steps, 1)
        counts = range(1, min(most // self.tile, len(level)) + 1)
        return [self.tile * np.bincount(level[:count], minlength=depth) for count in counts]

    def _depths(self, matrix: Sequence[int]) -> tuple[int, ...]:
        if self.ranks is not None:
            check_levels(tuple(matrix), self.ranks)
            return (len(self.ranks),)
        if self.levels is not None:
            check_grid(tuple(matrix), (2**self.levels,) * 2, "HODLR")
            return (self.levels,)
        grids = _candidates(matrix, tuple(2**k for k in range(1, DEEPEST + 1)))
        return tuple(int(math.log2(p)) for p, _ in grids)


def _blocks_of(w: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """The blocks of a matrix [*S, m, n], row by row."""
    return [x for row in np.split(w, grid[0], axis=-2) for x in np.split(row, grid[1], axis=-1)]


def _found(options: Iterable[Any], spec: Spec, shape: Sequence[int]) -> list[Any]:
    """What there is to choose from; RankError if the weight can be cut by no grid."""
    found = [x for x in options if x is not None]
    if not found:
        got = f"a {shape[-2]} x {shape[-1]} matrix for {type(spec).__name__}"
        expected, todo = "sides that a grid divides", "Choose another format, or give a grid."
        raise RankError(message(got=got, expected=expected, todo=todo))
    return found


@solve.register
def solve_blocks(
    spec: BlockSVD,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[BlockLowRank, Info]:
    """See `block_low_rank`; raises RankError where grid or ranks are not given or impossible."""
    return block_low_rank(w, spec.block_ranks, metric=metric, sweeps=spec.sweeps)


@solve_covering.register
def solve_covering_blocks(
    spec: BlockSVD,
    w: Float[Array, "G *S m n"],
    ranks: Int[Array, "G p q"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
) -> tuple[BlockLowRank, Info]:
    """See `lrjax.decompose.block.grid.covered`."""
    (_, *stack, _, _), (g, p, q) = w.shape, ranks.shape
    each = jnp.broadcast_to(ranks.reshape(g, *(1 for _ in stack), p, q), (g, *stack, p, q))
    most = int(spec.block_ranks.max())
    return blocks.covered(w, each, most, metric=metric, sweeps=spec.sweeps)


@solve.register
def solve_monarch(
    spec: Monarch,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[MonarchWeight, Info]:
    """See `monarch`; raises RankError where grid or rank are not given or impossible."""
    if spec.rank is None or spec.grid is None:
        raise _unplanned(spec, "a grid and a rank", "Monarch(1, (32, 32))")
    return monarch(w, spec.grid, spec.rank, metric=metric, sweeps=spec.sweeps)


@solve.register
def solve_blast(
    spec: BLAST,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[BlastWeight, Info]:
    """See `blast`; raises RankError where the rank is not given or impossible."""
    grid = spec._grid(w.shape[-2:])
    if spec.rank is None or grid is None:
        raise _unplanned(spec, "a grid and a rank", "BLAST(64, (4, 4))")
    return blast(w, spec.rank, grid, metric=metric, sweeps=spec.sweeps)


@solve.register
def solve_hodlr(
    spec: HODLR,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[HodlrWeight, Info]:
    """See `hodlr`; raises RankError where ranks are not given or impossible."""
    if spec.ranks is None:
        raise _unplanned(spec, "a rank a level", "HODLR((16, 8, 8))")
    return hodlr(w, spec.ranks, metric=metric, sweeps=spec.sweeps)


def _candidates(matrix: Sequence[int], sides: Sequence[int], least: int = SMALLEST):
    """The square grids that divide a matrix into blocks that are not too small."""
    m, n = matrix
    return tuple((b, b) for b in sides if m % b == n % b == 0 and min(m, n) >= least * b)


def _given(spec: BlockSVD | Monarch, matrix: Sequence[int]) -> tuple[Grid, ...]:
    """The one grid that a spec gives; ShapeError if it does not divide the matrix."""
    assert spec.grid is not None
    check_grid(tuple(matrix), spec.grid, type(spec).__name__)
    return (spec.grid,)


def _each(w: Array, metric: Metric, measure: Any) -> Array:
    """`measure(w, rows, cols)` of every matrix of a stack."""
    rows, cols = metric.broadcast(w.shape[:-2]).arrays()
    sides = [None if x is None else working(x) for x in (rows, cols)]
    return over_stack(measure, [working(w), *sides], core=2)


def _flat(values: Array) -> Array:
    """[*S, p, q, k] as [*S, p q, k]."""
    *stack, p, q, k = values.shape
    return values.reshape(*stack, p * q, k)


def _padded(values: list[Array], w: Array) -> Array:
    """Arrays [*S, ...] of different sizes, one behind the other on a new axis after S."""
    stack = w.ndim - 2
    if not values:
        return jnp.zeros((*w.shape[:-2], 0, 0, 0))
    most = [max(v.shape[d] for v in values) for d in range(stack, values[0].ndim)]
    fill = lambda v: (
        [(0, 0)] * stack + [(0, a - b) for a, b in zip(most, v.shape[stack:], strict=True)]
    )
    return jnp.stack([jnp.pad(v, fill(v)) for v in values], axis=stack)


def _pairs(grids: tuple[Grid, ...], spectrum: Any, axes: int) -> list[tuple[Grid, np.ndarray]]:
    """Each grid and its squares, summed over a stack; the last `axes` axes stay."""
    if not grids:
        return []
    values = np.asarray(spectrum, np.float64)
    squares = np.sum(values.reshape(-1, *values.shape[values.ndim - axes :]) ** 2, axis=0)
    return list(zip(grids, squares, strict=True))


def _options(rows: Sequence[tuple], count: int) -> Options:
    """Columns from (code, params, flops, error) rows, codes filled with zeros."""
    if not rows:
        return Options(np.zeros((0, 3), int), *(np.zeros(0) for _ in range(3)))  # pyright: ignore
    codes, params, flops, error = zip(*rows, strict=True)
    ranks = np.zeros((len(codes), max(map(len, codes))), int)
    for i, code in enumerate(codes):
        ranks[i, : len(code)] = code
    return Options(ranks, count * np.array(params), count * np.array(flops), np.array(error))


def _unplanned(spec: Spec, expected: str, example: str) -> RankError:
    todo = f"Plan it, or give them, e.g. {example}."
    return RankError(message(got=repr(spec), expected=expected, todo=todo))
