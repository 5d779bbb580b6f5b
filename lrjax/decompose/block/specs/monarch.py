"""Monarch: grids and widths of inner blocks, as a plan compares them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.block import grid as blocks
from lrjax.decompose.block.cells import Grid
from lrjax.decompose.block.monarch import check_rank, monarch, sorted_columns, sorted_side
from lrjax.decompose.block.outcome import with_total
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
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.formats.layout import Layout
from lrjax.formats.monarch import Monarch as MonarchWeight
from lrjax.linalg import Info
from lrjax.metrics import Metric

MONARCH_GRIDS = (4, 8, 16, 32, 64)
"""Blocks a side of Monarch matrices; near the root of the side they are smallest."""


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
        found = [each_matrix(w, metric, functools.partial(values, grid=g)) for g in grids]
        return padded([with_total(v, metric.loss(w), 1) for v in found], w)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(rank, p, q) for every candidate grid and rank below break-even."""
        *stack, m, n = layout.matrix_shape(shape)
        rows = []
        for (p, q), squares in with_squares(self._grids((m, n)), spectrum, 2):
            tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            price, most = q * m + p * n, min(m // p, n // q)
            ranks = range(1, min(most, (m * n - 1) // price) + 1)
            for r in ranks if self.rank is None else (self.rank,):
                check_rank((m, n), (p, q), r)
                rows.append(((r, p, q), r * price, 2 * r * price, tails[r]))
        return options_of(rows, math.prod(stack))

    def with_rank(self, rank: Any) -> Self:
        """The spec with this (rank, p, q)."""
        r, *grid = np.atleast_1d(rank).tolist()
        return dataclasses.replace(self, rank=r, grid=tuple(grid) or self.grid)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """The inner blocks are p r and q r wide."""
        r, p, q = (int(k) for k in rank)
        return p * r % tile == q * r % tile == 0

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The slices of every candidate grid, [*S, p q, m / p, n / q] each."""
        grids = self._grids(w.shape[-2:])
        order = lambda grid: np.asarray(sorted_columns(jnp.asarray(w), grid), np.float64)
        cut = lambda grid: np.stack(blocks_of(order(grid), grid), axis=-3)
        return [cut(grid) for grid in grids]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The largest rank of a grid's slices, on the grid that is smallest so."""
        m, n = shape[-2:]
        pairs = zip(ranks, self._grids((m, n)), strict=True)
        size = lambda pair: pair[0] * (pair[1][1] * m + pair[1][0] * n)
        r, grid = min(choices(pairs, self, shape), key=size)
        return self.with_rank((r, *grid))

    def _grids(self, matrix: Sequence[int]) -> tuple[Grid, ...]:
        return (
            candidates(matrix, MONARCH_GRIDS, 1) if self.grid is None else given_grid(self, matrix)
        )


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
        raise unplanned(spec, "a grid and a rank", "Monarch(1, (32, 32))")
    return monarch(w, spec.grid, spec.rank, metric=metric, sweeps=spec.sweeps)
