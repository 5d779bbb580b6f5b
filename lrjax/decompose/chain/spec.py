"""What the specs of trains and rings share: digits, ranks, and the options that are compared."""

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lrjax.decompose.chain.digits import Digits, aligned, balanced, pairs
from lrjax.decompose.chain.sweeps import SWEEPS, TOL
from lrjax.decompose.spec import Options, Spec
from lrjax.errors import RankError, message
from lrjax.formats.chain import Chain
from lrjax.formats.layout import Layout
from lrjax.formats.tensor_ring import TensorRing
from lrjax.linalg.stack import working
from lrjax.metrics import Metric
from lrjax.ops import cost

STEP = 1.4
"""Ratio of neighbouring ranks in `options`: parameters grow with their square, twofold a step."""

Ranks = tuple[int, ...]


@dataclasses.dataclass(frozen=True, repr=False)
class ChainSpec(Spec):
    """W as a chain of cores, one for each pair of digits of the row and the column index.

    Attributes:
        rank: of each bond, or one for all of them (less where the digits on one side span less);
            or left to the plan.
        rows: digits of the row index; by default `count` balanced ones with the least padding, or
            none where they are to meet several dimensions of the weight (`fitted`).
        cols: digits of the column index; likewise.
        count: number of cores, where digits are not given.
        sweeps: most sweeps after the sequential SVDs, under the metric.
        tol: relative decrease of the loss that ends them.
        tile: ranks left to the plan are multiples of it, where the digits span as many.
    """

    rank: int | Ranks | None = None
    rows: Digits | None = dataclasses.field(default=None, kw_only=True)
    cols: Digits | None = dataclasses.field(default=None, kw_only=True)
    count: int = dataclasses.field(default=3, kw_only=True)
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)
    tol: float = dataclasses.field(default=TOL, kw_only=True)
    tile: int = dataclasses.field(default=1, kw_only=True)

    @abstractmethod
    def bonds(self, shape: Sequence[int], rank: int) -> Ranks:
        """This rank at all bonds of a chain of these pairs of digits, less where they span less."""

    @abstractmethod
    def before(self, ranks: Ranks) -> Ranks:
        """The rank before each core."""

    @abstractmethod
    def cut(self, w: Array, ranks: Ranks) -> Chain:
        """A chain of these ranks for matrices [*S, m, n], by sequential truncated SVDs."""

    def fitted(self, shape: Sequence[int], layout: Layout) -> Self:
        """The spec with digits that meet the dimensions of a weight of this shape.

        Of a side of one dimension, or whose digits are given, they stay as they are.
        """
        _, *dims = layout.resolve(len(shape))
        count = len(self.rows or self.cols or (0,) * self.count)
        rows, cols = (
            own or (None if len(side) == 1 else aligned(tuple(shape[d] for d in side), count))
            for own, side in zip((self.rows, self.cols), dims, strict=True)
        )
        return dataclasses.replace(self, rows=rows, cols=cols)

    def digits(self, shape: Sequence[int]) -> tuple[Digits, Digits]:
        """Digits of the rows and columns of a matrix."""
        count = len(self.rows or self.cols or (0,) * self.count)
        return self.rows or balanced(shape[-2], count), self.cols or balanced(shape[-1], count)

    def ranks(self, shape: Sequence[int]) -> Ranks:
        """The rank of each bond for a matrix.

        Raises:
          RankError: none is given.
        """
        if self.rank is None:
            got, todo = f"{type(self).__name__}() without rank", "Plan it, or give a rank."
            raise RankError(message(got=got, expected="one", todo=todo))
        if isinstance(self.rank, tuple):
            return self.rank
        return self.bonds(pairs(*self.digits(shape)), self.rank)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Losses of chains of rising rank, as a spectrum [*S, k] whose squared tails they are.

        They are nested cuts of sequential SVDs, so each loss is reached, and sweeps lower it.
        """
        metric, ladder = metric.broadcast(w.shape[:-2]), self._ladder(w.shape)
        x = working(w)
        largest = self.cut(x, ladder[-1])
        losses = [metric.loss(x)]
        for ranks in ladder:
            missed = metric.loss(x - _leading(largest, self.before(ranks)).densify())
            losses.append(jnp.minimum(missed, losses[-1]))
        losses.append(jnp.zeros_like(losses[0]))
        steps = [a - b for a, b in itertools.pairwise(losses)]
        return jnp.sqrt(jnp.maximum(jnp.stack(steps, axis=-1), 0))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks in steps of about 1.4 below the dense weight's size, or the one that is fixed."""
        *stack, m, n = layout.matrix_shape(shape)
        ladder = self._ladder((m, n))
        energy = np.atleast_2d(np.asarray(spectrum, np.float64) ** 2)
        energy = energy.reshape(-1, energy.shape[-1]).sum(0)
        errors = np.cumsum(energy[::-1])[::-1][1:]
        costs = [cost(_abstract(*self.digits((m, n)), self.before(r), dtype)) for r in ladder]
        params, flops = (np.array([getattr(c, f) for c in costs]) for f in ("params", "flops"))
        count = math.prod(stack)
        return Options(np.array(ladder), count * params, count * flops, errors)

    def with_rank(self, rank: Any) -> Self:
        """The spec with these ranks."""
        fixed = int(rank) if np.ndim(rank) == 0 else tuple(int(r) for r in rank)
        return dataclasses.replace(self, rank=fixed, tile=1)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`options` has seen to it."""
        return True

    def _ladder(self, shape: Sequence[int]) -> list[Ranks]:
        """The ranks that are options for a matrix, rising."""
        if self.rank is not None:
            return [self.ranks(shape)]
        digits, size = pairs(*self.digits(shape)), math.prod(shape[-2:])
        found: dict[Ranks, None] = {}
        most, rank = self.bonds(digits, size), 1.0
        while True:
            ranks = self.bonds(digits, -(-round(rank) // self.tile) * self.tile)
            before = self.before(ranks)
            cores = zip(before, digits, (*before[1:], before[0]), strict=True)
            if sum(map(math.prod, cores)) >= size:
                break
            found.setdefault(ranks)
            if ranks == most:
                break
            rank = max(rank * STEP, rank + 1)
        return list(found) or [self.bonds(digits, 1)]


def _leading(chain: Chain, ranks: Ranks) -> Chain:
    """The chain with the first `ranks` of each bond, those before each core."""
    ends = (*ranks[1:], ranks[0])
    cores = (c[..., :r, :, :, :s] for c, r, s in zip(chain.cores, ranks, ends, strict=True))
    return dataclasses.replace(chain, cores=tuple(cores))


def _abstract(rows: Digits, cols: Digits, ranks: Ranks, dtype: Any) -> TensorRing:
    """A chain without values; `ranks` are those before each core."""
    shapes = zip(ranks, rows, cols, (*ranks[1:], ranks[0]), strict=True)
    return TensorRing(tuple(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
