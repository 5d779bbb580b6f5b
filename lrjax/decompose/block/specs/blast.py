"""BLAST: ranks on one grid, as a plan compares them."""

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
from lrjax.decompose.block.blast import blast
from lrjax.decompose.block.cells import Grid, check_grid, join
from lrjax.decompose.block.outcome import with_total
from lrjax.decompose.block.specs.common import (
    candidates,
    choices,
    each_matrix,
    options_of,
    unplanned,
)
from lrjax.decompose.probe import rank_curve
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.formats.blast import BLAST as BlastWeight
from lrjax.formats.layout import Layout
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.metrics import Metric

PROBE_SWEEPS = 12


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
        white = each_matrix(w, metric, functools.partial(blocks.whitened, grid=grid))
        return with_total(join(white), metric.loss(w), 2)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(rank, p, q) below break-even with the losses of short fits, interpolated."""
        *stack, m, n = layout.matrix_shape(shape)
        grid = self._grid((m, n))
        if grid is None:
            return options_of([], 1)
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
        return options_of(rows, math.prod(stack))

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
        ((p, q),) = choices([self._grid(shape[-2:])], self, shape)
        return self.with_rank((max(ranks), p, q))

    def _grid(self, matrix: Sequence[int]) -> Grid | None:
        if self.grid is not None:
            check_grid(tuple(matrix), self.grid, "BLAST")
            return self.grid
        return max(candidates(matrix, (2, 4)), default=None)


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
        raise unplanned(spec, "a grid and a rank", "BLAST(64, (4, 4))")
    return blast(w, spec.rank, grid, metric=metric, sweeps=spec.sweeps)
