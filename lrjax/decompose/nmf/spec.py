"""The NMF spec: semi-non-negative by default, non-negative for non-negative weights."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.nmf.fit import NMFInfo, nmf
from lrjax.decompose.probe import rank_curve
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.errors import RankError, message
from lrjax.formats.layout import Layout
from lrjax.formats.low_rank import LowRank
from lrjax.linalg.stack import working
from lrjax.metrics import Diagonal, Elements, Gram, Metric

PROBE_ITERATIONS = 30


@dataclasses.dataclass(frozen=True, repr=False)
class NMF(Spec):
    """W = left @ right with right >= 0; left is signed in the semi form, else non-negative too.

    Components that only add are easier to read than singular vectors, and with a penalty sparse;
    at equal rank the error is never below that of `SVD`. Weights have signs, so the semi form is
    the default: the other is for non-negative tables, attention maps and the like.

    Attributes:
        rank: the number of components, or left to the plan.
        semi: let `left` be signed.
        l1: penalty on the non-negative factors, for a weight of mean square one.
        iterations: most iterations.
    """

    rank: int | None = None
    semi: bool = dataclasses.field(default=True, kw_only=True)
    l1: float = dataclasses.field(default=0.0, kw_only=True)
    iterations: int = dataclasses.field(default=200, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """The weight [*S, m, n] and the importance of its entries, stacked before the matrix."""
        weights = entry_weights(metric, w)
        return jnp.stack([working(w), weights], axis=-3)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks below break-even with the losses of short fits, interpolated between a few."""
        *stack, m, n = layout.matrix_shape(shape)
        pair = jnp.asarray(spectrum, jnp.float32).reshape(-1, 2, m, n)

        def loss(rank: int) -> float:
            w, f = pair[:, 0], pair[:, 1]
            limits = {"semi": self.semi, "l1": self.l1, "iterations": PROBE_ITERATIONS}
            return float(jnp.sum(nmf(w, rank, weights=f, **limits)[1].residual ** 2))

        if self.rank is None:
            ranks, error = rank_curve((m * n - 1) // (m + n), loss)
        else:
            ranks, error = np.array([self.rank]), np.array([loss(self.rank)])
        params = math.prod(stack) * ranks * (m + n)
        return Options(ranks, params, 2 * params, error)

    def with_rank(self, rank: int) -> Self:
        """The spec with this number of components."""
        return dataclasses.replace(self, rank=int(rank))


@solve.register
def solve_nmf(
    spec: NMF,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[LowRank, NMFInfo]:
    """The spec's (semi-)non-negative product; see `lrjax.decompose.nmf.nmf`.

    A metric weighs entries by its diagonals: signs cannot be kept under a mixing of rows. The
    residual is that of the whole metric and of the stored factors.

    Raises:
      RankError: the rank is not given, or out of range.
      RuleError: a non-negative form for a weight with negative entries (outside `jit`).
    """
    if spec.rank is None:
        todo = "Plan it, or give a rank."
        raise RankError(message(got="NMF() without a rank", expected="a rank", todo=todo))
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    plain = metric.rows is None and metric.cols is None
    weights = None if plain else entry_weights(metric, w)
    limits = {"semi": spec.semi, "l1": spec.l1, "iterations": spec.iterations, "key": key}
    found, info = nmf(w, spec.rank, weights=weights, **limits)
    found = found.astype(w.dtype)
    if plain and w.dtype == working(w).dtype:
        return found, info
    missed = metric.norm(working(w) - working(found.densify()))
    residual = jnp.where(jnp.isnan(info.residual), jnp.nan, missed)
    return found, dataclasses.replace(info, residual=residual)


def entry_weights(metric: Metric, w: Float[Array, "*S m n"]) -> Float[Array, "*S m n"]:
    """The metric's weight of each single entry: its own, or r c' of both sides' diagonals."""
    if isinstance(metric, Elements):
        return working(metric.weights)
    rows, cols = (_diagonal(side) for side in (metric.rows, metric.cols))
    weights = jnp.ones(w.shape, working(w).dtype)
    weights = weights if rows is None else weights * rows[..., :, None]
    return weights if cols is None else weights * cols[..., None, :]


def _diagonal(side: Any) -> Array | None:
    match side:
        case Diagonal(values):
            return values
        case Gram(matrix):
            finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1))[..., None]
            return jnp.where(finite, jnp.diagonal(matrix, axis1=-2, axis2=-1), jnp.nan)
    return None
