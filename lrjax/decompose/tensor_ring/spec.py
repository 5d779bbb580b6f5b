"""The tensor-ring spec, and its solver."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.chain.digits import check_digits, interleave, pairs
from lrjax.decompose.chain.spec import ChainSpec
from lrjax.decompose.spec import solve
from lrjax.decompose.tensor_ring.als import tr_als
from lrjax.decompose.tensor_ring.ranks import check_ranks, fitting
from lrjax.decompose.tensor_ring.start import STARTS, best_start
from lrjax.decompose.tensor_ring.svd import tr_svd
from lrjax.formats.tensor_ring import TensorRing as TensorRingWeight
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.linalg.tensor import unfold
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class TensorRing(ChainSpec):
    """W as a ring of cores, one for each pair of digits of the row and the column index.

    Attributes:
        rank: before each core, r_0 ... r_{d-1}, of which the first closes the ring; or one for all
            of them (less where the digits span less); or left to the plan.
        rows: digits of the row index; by default `count` balanced ones with the least padding.
        cols: digits of the column index; likewise.
        count: number of cores, where digits are not given.
        sweeps: most sweeps from the best start, under the metric.
        tol: relative decrease of the loss that ends them.
        tile: ranks left to the plan are multiples of it, where the digits span as many.
        ends: the rank before core `first` in plans: it multiplies the time of every product.
        first: number of the core that is cut off first; its two ranks together are at most its
            digits.
        starts: rings that are tried, TR-SVD and random ones, before sweeps of the best.
    """

    ends: int = dataclasses.field(default=2, kw_only=True)
    first: int = dataclasses.field(default=0, kw_only=True)
    starts: int = dataclasses.field(default=STARTS, kw_only=True)

    def bonds(self, shape: Sequence[int], rank: int) -> tuple[int, ...]:
        """This rank, or as much as the digits span; `ends` before the first core in plans."""
        ranks = [rank] * len(shape)
        if self.rank is None:
            ranks[self.first] = min(self.ends, rank)
        return fitting(shape, ranks, self.first)

    def before(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks themselves."""
        return ranks

    def cut(self, w: Array, ranks: tuple[int, ...]) -> TensorRingWeight:
        """TR-SVD."""
        rows, cols = self.digits(w.shape)
        return tr_svd(w, rows, cols, ranks, first=self.first)[0]

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """One matrix a core: its digits against all others, of rank r_k r_{k+1}."""
        digits = self.digits(w.shape)
        x = interleave(jnp.asarray(w), *digits).reshape(-1, *pairs(*digits))
        each = [jax.vmap(lambda x, k=k: unfold(x, k))(x) for k in range(x.ndim - 1)]
        return [np.asarray(y, np.float64).reshape(*w.shape[:-2], *y.shape[1:]) for y in each]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The ranks whose products with their next ones are nearest to these, as ratios."""
        d = len(ranks)
        neighbours = np.eye(d) + np.roll(np.eye(d), 1, axis=1)
        logs = np.linalg.lstsq(neighbours, np.log(np.maximum(ranks, 1)), rcond=None)[0]
        near = [int(r) for r in np.round(np.exp(logs))]
        return self.with_rank(fitting(pairs(*self.digits(shape)), near, self.first))


@solve.register
def solve_tensor_ring(
    spec: TensorRing,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: TensorRingWeight | None = None,
) -> tuple[TensorRingWeight, Info]:
    """The best of several starts, then sweeps under the metric; see `best_start` and `tr_als`.

    With a rank of one before core `first` the ring is a train, and TT-SVD the start.

    Raises:
      RankError: the spec has no rank, or one that is out of range.
      ShapeError: the digits do not hold the weight.
    """
    x, deficient = working(w), jnp.zeros(w.shape[:-2], jnp.int32)
    if init is None:
        (rows, cols), ranks = spec.digits(w.shape), spec.ranks(w.shape)
        check_digits(x, rows, cols)
        ranks = check_ranks(pairs(rows, cols), ranks, spec.first)
        key = jax.random.key(0) if key is None else key
        if ranks[spec.first] == 1:
            init, info = tr_svd(x, rows, cols, ranks, first=spec.first, key=key)
            deficient = info.status
        else:
            init, deficient = best_start(
                x, rows, cols, ranks, first=spec.first, starts=spec.starts, key=key
            )
    found, info = tr_als(x, init, metric=metric, sweeps=spec.sweeps, tol=spec.tol)
    status = jnp.maximum(info.status, deficient)
    return found.astype(w.dtype), dataclasses.replace(info, status=status)
