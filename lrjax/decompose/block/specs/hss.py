"""HSS: depths and the ranks of their levels, as a plan compares them."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.block import grid as blocks
from lrjax.decompose.block.cells import check_grid, join
from lrjax.decompose.block.hss import check_levels, hss
from lrjax.decompose.block.nested import nested_losses, steps_between
from lrjax.decompose.block.outcome import with_total
from lrjax.decompose.block.specs.common import (
    blocks_of,
    choices,
    depths,
    each_matrix,
    options_of,
    unplanned,
)
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.formats.hss import HSS as HssWeight
from lrjax.formats.layout import Layout
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class HSS(Spec):
    """W = dense diagonal blocks, and all others between bases that are nested level by level.

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
        """The matrix whitened by what the smallest blocks meet of the metric."""
        deepest = 2 ** max(self._depths(w.shape[-2:]), default=0)
        white = functools.partial(blocks.whitened, grid=(deepest, deepest))
        whitened = join(each_matrix(w, metric, white)) if deepest > 1 else working(w)
        return with_total(whitened, metric.loss(w), 2)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(levels, ranks): projections for a few thresholds a depth, and steps between them.

        A threshold is one for all levels. Losses between two of them are interpolated.
        """
        *stack, m, n = layout.matrix_shape(shape)
        w = np.asarray(spectrum, np.float64).reshape(-1, m, n)
        rows = []
        for depth in self._depths((m, n)):
            for ranks, error in self._curve(w, depth):
                params = parameters((m, n), ranks)
                if params < m * n or self.ranks is not None:
                    flops = 2 * params + additions(n, ranks)
                    rows.append(((depth, *ranks), params, flops, error))
        return options_of(rows, math.prod(stack))

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
        """Block rows and block columns without the diagonal, level by level."""
        found = []
        for count in (2**k for k in range(1, 1 + max(self._depths(w.shape[-2:]), default=0))):
            cells = blocks_of(w, (count, count))
            others = [[j for j in range(count) if j != i] for i in range(count)]
            row = lambda i, js: np.concatenate([cells[i * count + j] for j in js], -1)  # noqa: B023
            col = lambda i, js: np.concatenate([cells[j * count + i] for j in js], -2)  # noqa: B023
            for side in (row, col):
                found.append(np.stack([side(i, js) for i, js in enumerate(others)], axis=-3))
        return found

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Level by level the larger of both sides, at the depth that is smallest so."""
        matrix = tuple(shape[-2:])
        each = [max(pair) for pair in zip(ranks[::2], ranks[1::2], strict=True)]

        def capped(depth: int) -> tuple[int, ...]:
            found, most = [], min(matrix) // 2**depth
            for r in each[:depth][::-1]:
                found.append(min(r, most))
                most = 2 * found[-1]
            return tuple(found[::-1])

        options = choices(map(capped, self._depths(matrix)), self, shape)
        best = min(options, key=functools.partial(parameters, matrix))
        return self.with_rank((len(best), *best))

    def _curve(self, w: np.ndarray, depth: int) -> Iterator[tuple[tuple[int, ...], float]]:
        if self.ranks is not None:
            return iter(nested_losses(w, depth, self.tile, self.ranks))
        size = functools.partial(parameters, w.shape[1:])
        return steps_between(nested_losses(w, depth, self.tile), size, self.tile)

    def _depths(self, matrix: Sequence[int]) -> tuple[int, ...]:
        if self.ranks is not None:
            check_levels(tuple(matrix), self.ranks)
            return (len(self.ranks),)
        if self.levels is not None:
            check_grid(tuple(matrix), (2**self.levels,) * 2, "HSS")
            return (self.levels,)
        return depths(matrix)


def parameters(matrix: Sequence[int], ranks: Sequence[int]) -> int:
    """Of an HSS matrix with these ranks, coarse first."""
    m, n = matrix
    size, (rows, cols) = m * n >> len(ranks), (m, n)
    for level in range(len(ranks), 0, -1):
        r = ranks[level - 1]
        if not r:  # what lies above an empty basis is left out
            break
        size += r * (rows + cols) + 2**level * r * r
        rows = cols = 2**level * r
    return size


def additions(n: int, ranks: Sequence[int]) -> int:
    """What comes down from a coarser level is added to a level's own."""
    widths = (*(2**level * r for level, r in enumerate(ranks, 1)), n)
    return sum(width for r, width in zip(ranks, widths[1:], strict=True) if r)


@solve.register
def solve_hss(
    spec: HSS,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[HssWeight, Info]:
    """See `hss`; raises RankError where ranks are not given or impossible."""
    if spec.ranks is None:
        raise unplanned(spec, "a rank a level", "HSS((16, 16, 8))")
    return hss(w, spec.ranks, metric=metric, sweeps=spec.sweeps)
