"""BlockSVD: grids and the ranks of their blocks, as a plan compares them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lrjax.decompose.block import grid as blocks
from lrjax.decompose.block.cells import Grid
from lrjax.decompose.block.grid import block_low_rank
from lrjax.decompose.block.outcome import with_total
from lrjax.decompose.block.share import ladder, lost
from lrjax.decompose.block.specs.common import (
    blocks_of,
    candidates,
    choices,
    each_matrix,
    given_grid,
    options_of,
    padded,
    unplanned,
    with_squares,
)
from lrjax.decompose.spec import Options, Spec, solve, solve_covering
from lrjax.errors import RankError, message
from lrjax.formats.block_low_rank import BlockLowRank, packed_size
from lrjax.formats.layout import Layout
from lrjax.linalg import Info
from lrjax.metrics import Metric

GRIDS = (2, 4, 8)
"""Blocks a side that the plan compares; finer ones have gathers as long as their products."""


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
        values = [each_matrix(w, metric, functools.partial(blocks.spectra, grid=g)) for g in grids]
        return padded([with_total(_flat(v), metric.loss(w), 2) for v in values], w)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(p, q, ranks row by row) for many thresholds on each candidate grid.

        The error is exact where the metric has no terms between blocks; else it leaves them out.
        """
        *stack, m, n = layout.matrix_shape(shape)
        rows = []
        for (p, q), squares in with_squares(self._grids((m, n)), spectrum, 3):
            own = squares[: p * q, : min(m // p, n // q)].reshape(p, q, -1)
            for ranks in (
                ladder(own, self.tile) if self.ranks is None else [self._given_ranks((p, q))]
            ):
                blocks.check_ranks((m, n), ranks, "BlockSVD")
                params = packed_size(ranks, m // p, n // q)
                if params < m * n or self.ranks is not None:
                    code = (p, q, *ranks.reshape(-1).tolist())
                    rows.append((code, params, 2 * params, lost(own, ranks)))
        return options_of(rows, math.prod(stack))

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
        return [x for grid in self._grids(w.shape[-2:]) for x in blocks_of(w, grid)]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Block by block, on the grid that is smallest so."""
        found, (m, n) = list(ranks), shape[-2:]
        grids = self._grids((m, n))
        own = [np.array([found.pop(0) for _ in range(p * q)]).reshape(p, q) for p, q in grids]
        size = lambda pair: packed_size(pair[1], m // pair[0][0], n // pair[0][1])
        (p, q), best = min(choices(zip(grids, own, strict=True), self, shape), key=size)
        return self.with_rank((p, q, *best.reshape(-1).tolist()))

    @property
    def block_ranks(self) -> np.ndarray:
        """The ranks of all blocks, [p, q]; RankError where grid or ranks are not given."""
        if self.ranks is None or self.grid is None:
            raise unplanned(self, "a grid and ranks", "BlockSVD(16, (4, 4))")
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
        return candidates(matrix, GRIDS) if self.grid is None else given_grid(self, matrix)

    def _given_ranks(self, grid: Grid) -> np.ndarray:
        ranks = np.asarray(self.ranks, int)
        if ranks.ndim and ranks.size != grid[0] * grid[1]:
            expected = f"one number, or {grid[0] * grid[1]} for a grid of {grid}"
            todo = "Give them row by row."
            raise RankError(message(got=f"{ranks.size} ranks", expected=expected, todo=todo))
        return np.broadcast_to(ranks.reshape(grid if ranks.ndim else ()), grid)


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


def _flat(values: Array) -> Array:
    """[*S, p, q, k] as [*S, p q, k]."""
    *stack, p, q, k = values.shape
    return values.reshape(*stack, p * q, k)
