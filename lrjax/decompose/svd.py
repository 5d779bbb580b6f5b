"""SVD: the weight as one product of two factors, optimal under the metric."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from lrjax.decompose.spec import Options, Spec, solve, solve_covering
from lrjax.errors import RankError, message
from lrjax.formats import LowRank
from lrjax.formats.layout import Layout
from lrjax.linalg import Accuracy, Info, Status, weighted_svd
from lrjax.linalg.truncated import check_rank, matrix_shape
from lrjax.linalg.weighted import weighted_residual
from lrjax.metrics import Metric

RANK_STEP = 32
"""Weights are solved together at multiples of this rank: few distinct ranks, few compilations."""

DEFICIENT = 1e-3
"""A residual below this share of the whole is what rounding leaves of a rank-deficient weight."""


@dataclasses.dataclass(frozen=True, repr=False)
class SVD(Spec):
    """W = left @ right at a rank, given, as a share of the parameters, or left to the plan.

    Attributes:
        rank: the inner dimension r; r (m + n) parameters instead of m n.
        keep: share of the parameters instead of a rank, in (0, 1].
        accuracy: how near the optimal error the solver comes.
        balance: share each singular value evenly between the factors (better to train on); else
            right has orthonormal rows, where the metric has no column side.
        allow_above_break_even: accept a rank that costs more than the dense weight.

    Raises:
        RankError: a rank below one, a keep outside (0, 1], or both given.
    """

    rank: int | None = None
    keep: float | None = None
    accuracy: Accuracy = dataclasses.field(default=Accuracy.DEFAULT, kw_only=True)
    balance: bool = dataclasses.field(default=True, kw_only=True)
    allow_above_break_even: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        if self.rank is not None and self.keep is not None:
            raise _wrong(f"rank={self.rank} and keep={self.keep}", "one of the two")
        if self.rank is not None and (not _is_integer(self.rank) or self.rank < 1):
            raise _wrong(f"rank={self.rank!r}", "an integer of at least 1")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise _wrong(f"keep={self.keep!r}", "a share in (0, 1]")
        super().__post_init__()

    @property
    def is_exact(self) -> bool:
        """Tails of the whitened spectrum are what the truncated SVD loses."""
        return True

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """All ranks below break-even, or the one that is fixed; loss = tail of the spectrum."""
        *stack, m, n = layout.matrix_shape(shape)
        if self.rank is None and self.keep is None:
            ranks = np.arange(1, max_rank((m, n)) + 1)
        else:
            ranks = np.array([self.rank_for((m, n))])
        params = math.prod(stack) * ranks * (m + n)
        energy = np.sum(np.atleast_2d(np.asarray(spectrum, np.float64) ** 2), axis=-2)
        tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        return Options(ranks, params, 2 * params, tails[ranks])

    def with_rank(self, rank: int) -> Self:
        """The spec with this rank."""
        return dataclasses.replace(self, rank=int(rank), keep=None)

    def rank_for(self, shape: tuple[int, int]) -> int:
        """The rank for a matrix m x n.

        Raises:
          RankError: none is given, it is above min(m, n), or above break-even m n / (m + n).
        """
        m, n = shape
        rank = self.rank
        if self.keep is not None:
            rank = max(int(self.keep * m * n / (m + n)), 1)
        if rank is None:
            raise _wrong("SVD() without a size", "a rank or a keep", "Plan it, or give one.")
        check_rank(rank, shape)
        if rank > max_rank(shape) and self.keep is None and not self.allow_above_break_even:
            raise _wrong(
                f"rank {rank} for a {m} x {n} matrix",
                f"at most {max_rank(shape)}: break-even is m n / (m + n) = {m * n / (m + n):.1f}",
                "Lower the rank, keep the weight dense, or set allow_above_break_even=True.",
            )
        return rank

    @property
    def family(self) -> Spec:
        """All ranks of one kind."""
        return self.with_rank(1)

    def covering(self, specs: Sequence[Spec], shape: Sequence[int]) -> tuple[Spec, np.ndarray]:
        """The largest rank, rounded up to a multiple of `RANK_STEP`."""
        ranks = np.array([spec.rank for spec in specs])  # pyright: ignore
        most = min(-(-int(ranks.max()) // RANK_STEP) * RANK_STEP, *shape[-2:])
        spec = dataclasses.replace(self.with_rank(most), allow_above_break_even=True)
        return spec, ranks

    @classmethod
    def field_from_json(cls, name: str, value: Any) -> Any:
        """Accuracies by name."""
        if name != "accuracy":
            return super().field_from_json(name, value)
        if value not in Accuracy.__members__:
            raise _wrong(f"accuracy {value!r}", f"one of {', '.join(Accuracy.__members__)}")
        return Accuracy[value]


def max_rank(shape: tuple[int, int]) -> int:
    """The largest rank that costs no more than the dense matrix: floor(m n / (m + n)), or 0."""
    m, n = shape
    return m * n // (m + n)


@solve.register
def solve_svd(
    spec: SVD,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[LowRank, Info]:
    """The minimiser of tr(D' rows D cols) at the spec's rank; see `lrjax.linalg.weighted_svd`.

    Solved in float32; the factors have the weight's dtype, and the residual is that of the cast
    factors. The solve is direct, so `init` is not needed and not used.

    Raises:
      RankError: as `SVD.rank_for`.
      ShapeError: `w` is not a matrix, or the metric does not fit it.
    """
    rank = spec.rank_for(matrix_shape(w))
    rows, cols = (metric or Metric()).broadcast(w.shape[:-2]).arrays()
    left, right, _, info = weighted_svd(
        w, rank, rows=rows, cols=cols, key=key, accuracy=spec.accuracy
    )
    if spec.balance:
        left, right = balanced(left, right)
    if jnp.promote_types(w.dtype, jnp.float32) == w.dtype:
        return LowRank(left.astype(w.dtype), right.astype(w.dtype)), info
    left, right = left.astype(w.dtype), right.astype(w.dtype)
    residual = weighted_residual(w, left, right, rows=rows, cols=cols)
    return LowRank(left, right), dataclasses.replace(info, residual=residual)


@solve_covering.register
def solve_covering_svd(
    spec: SVD,
    w: Float[Array, "G *S m n"],
    ranks: Int[Array, " G"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
) -> tuple[LowRank, Info]:
    """The solve at the spec's rank, columns of `left` zero from each matrix's own rank on."""
    factors, info = solve(spec, w, metric=metric, key=key)
    kept = jnp.arange(factors.rank) < jnp.reshape(ranks, (-1,) + (1,) * (w.ndim - 1))
    factors = LowRank(jnp.where(kept, factors.left, 0), factors.right)
    missed = lambda left: (metric or Metric()).residual(w, left, factors.right)
    residual, whole = missed(factors.left), missed(jnp.zeros_like(factors.left))
    # A rank that still misses something is no surplus, whatever the larger one was.
    surplus = residual <= DEFICIENT * whole
    deficient = info.status == int(Status.RANK_DEFICIENT)
    status = jnp.where(deficient & ~surplus, int(Status.CONVERGED), info.status)
    return factors, dataclasses.replace(info, residual=residual, status=status)


@jax.jit
def balanced(
    left: Float[Array, "*S m r"], right: Float[Array, "*S r n"]
) -> tuple[Float[Array, "*S m r"], Float[Array, "*S r n"]]:
    """The same product, each column of left as long as its row of right; zero pairs stay."""
    columns, rows = _norm(left, -2), _norm(right, -1)
    usable = (columns > 0) & (rows > 0)
    share = jnp.sqrt(jnp.where(usable, rows, 1)) / jnp.sqrt(jnp.where(usable, columns, 1))
    return left * share[..., None, :], right / share[..., :, None]


def _norm(x: Array, axis: int) -> Array:
    """Norms in the unit of the largest entry: squares of 1e30 or 1e-30 leave float32's range."""
    peak = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    safe = jnp.where(peak > 0, peak, 1)
    return jnp.sqrt(jnp.sum((x / safe) ** 2, axis=axis)) * jnp.squeeze(peak, axis)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _wrong(got: str, expected: str, todo: str = "Correct the spec.") -> RankError:
    return RankError(message(got=got, expected=expected, todo=todo))
