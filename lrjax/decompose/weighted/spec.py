"""The spec of element-weighted low rank."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.spec import Options, Spec, solve
from lrjax.decompose.svd import max_rank
from lrjax.decompose.weighted.fit import Inner, WeightedInfo, weighted_low_rank
from lrjax.decompose.weighted.metric import as_weights
from lrjax.errors import RankError, StatsError, message
from lrjax.formats.layout import Layout
from lrjax.formats.low_rank import LowRank
from lrjax.linalg.truncated import check_rank
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class WeightedLowRank(Spec):
    """W = left @ right, the least sum of F_ij (W - left @ right)_ij^2, as TFWSVD.

    Attributes:
        rank: the inner dimension, or left to the plan.
        ridge: penalty on both factors, in the unit of the mean weight.
        inner: conjugate gradients, or exact normal equations (small ranks; the reference).
        sweeps: most sweeps.
        tol: gradient, relative to its data part, at which they end.
    """

    rank: int | None = None
    ridge: float = dataclasses.field(default=0.0, kw_only=True)
    inner: Inner = dataclasses.field(default=Inner.CG, kw_only=True)
    sweeps: int = dataclasses.field(default=200, kw_only=True)
    tol: float = dataclasses.field(default=1e-4, kw_only=True)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks below break-even; the loss is that of the start, under the separable weights."""
        *stack, m, n = layout.matrix_shape(shape)
        ranks = np.arange(1, max_rank((m, n)) + 1)
        if self.rank is not None:
            check_rank(self.rank, (m, n))
            ranks = np.array([self.rank])
        energy = np.sum(np.atleast_2d(np.asarray(spectrum, np.float64) ** 2), axis=-2)
        tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        params = math.prod(stack) * ranks * (m + n)
        return Options(ranks, params, 2 * params, tails[ranks])

    def with_rank(self, rank: int) -> Self:
        """The spec with this rank."""
        return dataclasses.replace(self, rank=int(rank))

    @classmethod
    def field_from_json(cls, name: str, value: Any) -> Any:
        """The inner method by name."""
        return Inner[value] if name == "inner" else super().field_from_json(name, value)


@solve.register
def solve_weighted(
    spec: WeightedLowRank,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: LowRank | None = None,
) -> tuple[LowRank, WeightedInfo]:
    """The spec's factors under `Elements` weights; see `weighted_low_rank`.

    Diagonal sides count as weights r c'; then, and without a metric, the start is the optimum.
    The factors have the weight's dtype.

    Raises:
      RankError: the rank is not given, or out of range.
      StatsError: the metric has a full Gram, which mixes rows or columns: that is `SVD`'s.
    """
    if spec.rank is None:
        todo = "Plan it, or give a rank."
        raise RankError(message(got=f"{spec!r}", expected="a rank", todo=todo))
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    weights = as_weights(metric, w)
    if weights is None:
        todo = "Pass Elements(weights), or use SVD for this metric."
        got = "a metric that mixes rows or columns"
        raise StatsError(message(got=got, expected="element-wise weights", todo=todo))
    limits = {"ridge": spec.ridge, "inner": spec.inner, "sweeps": spec.sweeps, "tol": spec.tol}
    found, info = weighted_low_rank(w, weights, spec.rank, init=init, key=key, **limits)
    return found.astype(w.dtype), info
