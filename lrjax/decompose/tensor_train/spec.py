"""The tensor-train specs: digits, ranks, and the options that the planner compares."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.chain.digits import Digits, bounds, interleave, pairs
from lrjax.decompose.chain.spec import ChainSpec
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.decompose.tensor_train.als import tt_als
from lrjax.decompose.tensor_train.svd import tt_svd
from lrjax.decompose.tensor_train.tokens import token_train
from lrjax.formats.layout import Layout
from lrjax.formats.tensor_train import TensorTrain as TensorTrainWeight
from lrjax.formats.token_train import TokenTrain as TokenTrainWeight
from lrjax.linalg import Info, Status
from lrjax.linalg.stack import working
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class TensorTrain(ChainSpec):
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

    def bonds(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """This rank, or all that the digits on one side of a bond span."""
        return tuple(min(rank, most) for most in bounds(shape))

    def before(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Nothing is before the first core."""
        return (1, *ranks)

    def cut(self, w: Array, ranks: tuple[int, ...]) -> TensorTrainWeight:
        """TT-SVD."""
        rows, cols = self.digits(w.shape)
        return tt_svd(w, rows, cols, ranks)[0]

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
        rows, cols = spec.digits(w.shape)
        init, info = tt_svd(x, rows, cols, spec.ranks(w.shape), key=key)
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

    Weights on the rows change no row's own optimum, and a metric on the columns is not used, but
    in the residual.

    Raises:
      RankError: a rank is out of range.
      ShapeError: the digits do not hold the columns.
    """
    found, info = token_train(w, spec.digits, spec.rank, key=key)
    if metric is None:
        return found, info
    metric, failed = metric.broadcast(w.shape[:-2]), info.status == int(Status.NON_FINITE)
    for side in jax.tree.leaves(metric):
        failed |= ~jnp.isfinite(side).all(range(w.ndim - 2, side.ndim))
    zero = lambda core: jnp.where(
        failed.reshape(*failed.shape, *(1,) * (core.ndim - failed.ndim)), 0, core
    )
    found = jax.tree.map(zero, found)
    missed = metric.norm(working(w) - working(found.densify()))
    status = jnp.where(failed, int(Status.NON_FINITE), info.status)
    residual = jnp.where(failed, jnp.nan, missed)
    return found, dataclasses.replace(info, residual=residual, status=status)
