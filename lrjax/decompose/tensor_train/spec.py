"""The tensor-train specs: digits, ranks, and the options that the planner compares."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.chain.digits import Digits, balanced, bounds, interleave, pairs
from lrjax.decompose.chain.sweeps import SWEEPS, TOL
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.decompose.tensor_train.als import tt_als
from lrjax.decompose.tensor_train.svd import tt_svd
from lrjax.decompose.tensor_train.tokens import token_train
from lrjax.errors import RankError, message
from lrjax.formats.layout import Layout
from lrjax.formats.tensor_train import TensorTrain as TensorTrainWeight
from lrjax.formats.token_train import TokenTrain as TokenTrainWeight
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.metrics import Metric
from lrjax.ops import cost

STEP = 1.4
"""Ratio of neighbouring ranks in `options`: parameters grow with their square, twofold a step."""


@dataclasses.dataclass(frozen=True)
class TensorTrain(Spec):
    """W as a train of cores, one for each pair of digits of the row and the column index.

    Sort the tokens of a table by frequency before: otherwise its row digits mean nothing.

    Attributes:
        rank: of each bond, or one for all of them (less where the digits on one side span less);
            or left to the plan.
        rows: digits of the row index; by default `count` balanced ones with the least padding.
        cols: digits of the column index; likewise.
        count: number of cores, where digits are not given.
        sweeps: most sweeps after TT-SVD, under the metric.
        tol: relative decrease of the loss that ends them.
        tile: ranks left to the plan are multiples of it, where the digits span as many.
    """

    rank: int | tuple[int, ...] | None = None
    rows: Digits | None = dataclasses.field(default=None, kw_only=True)
    cols: Digits | None = dataclasses.field(default=None, kw_only=True)
    count: int = dataclasses.field(default=3, kw_only=True)
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)
    tol: float = dataclasses.field(default=TOL, kw_only=True)
    tile: int = dataclasses.field(default=1, kw_only=True)

    def digits(self, shape: Sequence[int]) -> tuple[Digits, Digits]:
        """Digits of the rows and columns of a matrix."""
        count = len(self.rows or self.cols or (0,) * self.count)
        return self.rows or balanced(shape[-2], count), self.cols or balanced(shape[-1], count)

    def ranks(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The rank of each bond for a matrix.

        Raises:
          RankError: none is given.
        """
        if self.rank is None:
            todo = "Plan it, or give a rank."
            raise RankError(message(got="TensorTrain() without rank", expected="one", todo=todo))
        if isinstance(self.rank, tuple):
            return self.rank
        return tuple(min(self.rank, most) for most in bounds(pairs(*self.digits(shape))))

    def measure(self, w: Array, metric: Metric) -> Array:
        """Losses of trains of rising rank, as a spectrum [*S, k] whose squared tails they are.

        The trains are nested cuts of one TT-SVD, so each loss is reached, and sweeps lower it.
        """
        metric = metric.broadcast(w.shape[:-2])
        x = working(w)
        ladder = self._ladder(w.shape)
        train, _ = tt_svd(x, *self.digits(w.shape), ladder[-1])
        zero = functools.partial(jnp.zeros, w.shape[:-2])
        losses = [metric.loss(x)]
        for ranks in ladder:
            cut = metric.loss(x - _cut(train, ranks).densify())
            losses.append(jnp.minimum(cut, losses[-1]))
        steps = [a - b for a, b in zip(losses, [*losses[1:], zero()], strict=True)]
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
        costs = [cost(_abstract(*self.digits((m, n)), ranks, dtype)) for ranks in ladder]
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

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """One matrix a bond: the digits before it against those behind it."""
        digits = self.digits(w.shape)
        x = np.asarray(interleave(jnp.asarray(w), *digits), np.float64)
        stack, sizes = w.shape[:-2], pairs(*digits)
        rows = [math.prod(sizes[: k + 1]) for k in range(len(sizes) - 1)]
        return [x.reshape(*stack, n, -1) for n in rows]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Bond by bond."""
        most = bounds(pairs(*self.digits(shape)))
        return self.with_rank(tuple(map(min, ranks, most)))

    def _ladder(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        if self.rank is not None:
            return [self.ranks(shape)]
        digits = self.digits(shape)
        most, size = bounds(pairs(*digits)), math.prod(shape[-2:])
        found: dict[tuple[int, ...], None] = {}
        rank = 1.0
        while True:
            tiled = -(-round(rank) // self.tile) * self.tile
            ranks = tuple(min(tiled, b) for b in most)
            chain = (1, *ranks, 1)
            if sum(map(math.prod, zip(chain, pairs(*digits), chain[1:], strict=False))) >= size:
                break
            found.setdefault(ranks)
            if ranks == most:
                break
            rank = max(rank * STEP, rank + 1)
        return list(found) or [(1,) * len(most)]


@dataclasses.dataclass(frozen=True)
class TokenTrain(Spec):
    """Every row a train of its own: TensorGPT's form, for tables that grow by tokens.

    Attributes:
        rank: of each bond, the same for all rows.
        digits: of the column index.
    """

    rank: tuple[int, ...]
    digits: Digits

    def measure(self, w: Array, metric: Metric) -> Array:
        """Loss of the table's trains, and what they keep, as a spectrum [*S, 2]."""
        x = working(w)
        metric = metric.broadcast(w.shape[:-2])
        missed = metric.loss(x - token_train(x, self.digits, self.rank)[0].densify())
        kept = metric.loss(x) - missed
        return jnp.sqrt(jnp.maximum(jnp.stack([kept, missed], axis=-1), 0))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """The one size that the spec fixes."""
        *stack, m, _ = layout.matrix_shape(shape)
        chain = (1, *self.rank, 1)
        each = sum(map(math.prod, zip(chain, self.digits, chain[1:], strict=False)))
        error = float(np.sum(np.asarray(spectrum, np.float64)[..., 1] ** 2))
        params = np.array([math.prod(stack) * m * each])
        return Options(np.array([self.rank]), params, 2 * params, np.array([error]))

    def with_rank(self, rank: Any) -> Self:
        """The spec with these ranks."""
        return dataclasses.replace(self, rank=tuple(int(r) for r in rank))


@solve.register
def solve_tensor_train(
    spec: TensorTrain,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: TensorTrainWeight | None = None,
) -> tuple[TensorTrainWeight, Info]:
    """TT-SVD, then sweeps under the metric; see `tt_svd` and `tt_als`.

    Raises:
      RankError: the spec has no rank, or one that is out of range.
      ShapeError: the digits do not hold the weight.
    """
    x = working(w)
    deficient = jnp.zeros(w.shape[:-2], jnp.int32)
    if init is None:
        init, info = tt_svd(x, *spec.digits(w.shape), spec.ranks(w.shape), key=key)
        deficient = info.status
    found, info = tt_als(x, init, metric=metric, sweeps=spec.sweeps, tol=spec.tol)
    status = jnp.maximum(info.status, deficient)
    return found.astype(w.dtype), dataclasses.replace(info, status=status)


@solve.register
def solve_token_train(
    spec: TokenTrain,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[TokenTrainWeight, Info]:
    """TT-SVD of each row.

    Weights on the rows change no row's own optimum, and a metric on the columns is not used: the
    residual is that of the Frobenius norm.

    Raises:
      RankError: a rank is out of range.
      ShapeError: the digits do not hold the columns.
    """
    return token_train(w, spec.digits, spec.rank, key=key)


def _cut(train: TensorTrainWeight, ranks: tuple[int, ...]) -> TensorTrainWeight:
    """The train with the leading `ranks` of each bond."""
    chain = (1, *ranks, 1)
    cores = tuple(core[..., : chain[k], :, :, : chain[k + 1]] for k, core in enumerate(train.cores))
    return dataclasses.replace(train, cores=cores)


def _abstract(rows: Digits, cols: Digits, ranks: tuple[int, ...], dtype) -> TensorTrainWeight:
    chain = (1, *ranks, 1)
    shapes = zip(chain[:-1], rows, cols, chain[1:], strict=True)
    return TensorTrainWeight(tuple(jax.ShapeDtypeStruct(s, dtype) for s in shapes))
