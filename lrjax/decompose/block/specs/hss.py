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
from lrjax.decompose.block.cells import join
from lrjax.decompose.block.hss import check_levels, hss
from lrjax.decompose.block.nested import nested_losses, steps_between
from lrjax.decompose.block.outcome import with_total
from lrjax.decompose.block.specs.common import (
    blocks_of,
    choices,
    each_matrix,
    options_of,
    unplanned,
)
from lrjax.decompose.block.specs.hierarchy import Hierarchy
from lrjax.decompose.spec import Options, solve
from lrjax.formats.hss import HSS as HssWeight
from lrjax.formats.layout import Layout
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class HSS(Hierarchy):
    """W = dense diagonal blocks, and all others between bases that are nested level by level."""

    def check(self, matrix: tuple[int, ...], ranks: tuple[int, ...]) -> None:
        """See `check_levels`."""
        check_levels(matrix, ranks)

    def measure(self, w: Array, metric: Metric) -> Array:
        """The matrix whitened by what the smallest blocks meet of the metric."""
        deepest = 2 ** max(self.depths(w.shape[-2:]), default=0)
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
        for depth in self.depths((m, n)):
            for ranks, error in self._curve(w, depth):
                params = parameters((m, n), ranks)
                if params < m * n or self.ranks is not None:
                    flops = 2 * params + additions(n, ranks)
                    rows.append(((depth, *ranks), params, flops, error))
        return options_of(rows, math.prod(stack))

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """Block rows and block columns without the diagonal, level by level."""
        found = []
        for count in (2**k for k in range(1, 1 + max(self.depths(w.shape[-2:]), default=0))):
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

        options = choices(map(capped, self.depths(matrix)), self, shape)
        best = min(options, key=functools.partial(parameters, matrix))
        return self.with_rank((len(best), *best))

    def _curve(self, w: np.ndarray, depth: int) -> Iterator[tuple[tuple[int, ...], float]]:
        if self.ranks is not None:
            return iter(nested_losses(w, depth, self.tile, self.ranks))
        size = functools.partial(parameters, w.shape[1:])
        return steps_between(nested_losses(w, depth, self.tile), size, self.tile)


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
