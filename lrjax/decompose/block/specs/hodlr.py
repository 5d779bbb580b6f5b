"""HODLR: depths and the ranks of their levels, as a plan compares them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.block.hodlr import check_levels, hodlr, level_spectra
from lrjax.decompose.block.specs.common import (
    blocks_of,
    choices,
    each_matrix,
    options_of,
    unplanned,
)
from lrjax.decompose.block.specs.hierarchy import Hierarchy
from lrjax.decompose.spec import Options, solve
from lrjax.formats.hodlr import HODLR as HodlrWeight
from lrjax.formats.layout import Layout
from lrjax.linalg import Info
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class HODLR(Hierarchy):
    """W = dense diagonal blocks, and off-diagonal ones of low rank level by level."""

    def check(self, matrix: tuple[int, ...], ranks: tuple[int, ...]) -> None:
        """See `check_levels`."""
        check_levels(matrix, ranks)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Roots of the energies that each rank takes of a level's blocks, [*S, L, k].

        The scale is the metric's own, and not made to sum to anything: the diagonal stays dense.
        """
        levels = max(self.depths(w.shape[-2:]), default=0)
        if not levels:
            return jnp.zeros((*w.shape[:-2], 1, 1))
        return each_matrix(w, metric, functools.partial(level_spectra, levels=levels))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(levels, ranks) by one threshold over all levels, for every depth and number of ranks.

        A rank costs m + n parameters on every level, so the largest energies are the best.
        """
        *stack, m, n = layout.matrix_shape(shape)
        energy = np.asarray(spectrum, np.float64).reshape(-1, *np.shape(spectrum)[-2:]) ** 2
        rows = []
        for depth in self.depths((m, n)):
            squares = energy.sum(0)[:depth]
            caps = np.array([min(m, n) // 2**k for k in range(1, depth + 1)])
            diagonal = m * n // 2**depth
            for ranks in self._ladder(squares, caps, (m * n - 1 - diagonal) // (m + n)):
                params = diagonal + int(ranks.sum()) * (m + n)
                kept = np.arange(squares.shape[1]) < ranks[:, None]
                flops = 2 * params + depth * n
                rows.append(((depth, *ranks.tolist()), params, flops, squares[~kept].sum()))
        return options_of(rows, math.prod(stack))

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The blocks beside the diagonal, level by level, [*S, 2^l, m_l, n_l] each."""
        deepest = max(self.depths(w.shape[-2:]), default=0)
        grids = [(2**k, 2**k) for k in range(1, deepest + 1)]
        beside = lambda g, blocks: np.stack([blocks[g * i + (i ^ 1)] for i in range(g)], axis=-3)
        return [beside(g, blocks_of(w, (g, g))) for g, _ in grids]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Level by level, at the depth that is smallest so."""
        m, n = shape[-2:]
        depths = choices(self.depths((m, n)), self, shape)
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
        raise unplanned(spec, "a rank a level", "HODLR((16, 8, 8))")
    return hodlr(w, spec.ranks, metric=metric, sweeps=spec.sweeps)
