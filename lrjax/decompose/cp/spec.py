"""The CP spec: which modes, how many terms, and the options that the planner compares."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.cp.fit import CPInfo, canonical, cp
from lrjax.decompose.cp.whitening import whiten_modes
from lrjax.decompose.probe import rank_curve
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.cp import CP as CPWeight
from lrjax.formats.layout import Layout
from lrjax.linalg.info import Status
from lrjax.linalg.stack import working
from lrjax.metrics import Metric
from lrjax.ops import cost

PROBE_SWEEPS = 40


@dataclasses.dataclass(frozen=True, repr=False)
class CP(Spec):
    """W = a sum of rank-one tensors over three or more modes, as for convolution kernels.

    Attributes:
        rank: the number of terms, or left to the plan.
        modes: sizes into which rows, then columns, are cut, e.g. (kh * kw, cin, cout); by
            default the weight's own dimensions (`fitted`).
        starts: random starts.
        sweeps: most sweeps.
        slack: growth of the residual that the correction of cancelling terms may spend.
    """

    rank: int | None = None
    modes: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    starts: int = dataclasses.field(default=4, kw_only=True)
    sweeps: int = dataclasses.field(default=200, kw_only=True)
    slack: float = dataclasses.field(default=1e-3, kw_only=True)

    def fitted(self, shape: Sequence[int], layout: Layout) -> Self:
        """The spec with the dimensions of a weight of this shape as modes, where none are given."""
        if self.modes is not None:
            return self
        _, rows, cols = layout.resolve(len(shape))
        return dataclasses.replace(self, modes=tuple(shape[d] for d in (*rows, *cols)))

    def measure(self, w: Array, metric: Metric) -> Array:
        """The weight whitened mode by mode, [*S, m, n], scaled to the loss of dropping it."""
        modes, cut = self.cut_modes(w.shape[-2:])
        x, _ = whiten_modes(w, metric, modes, cut)
        x = x.reshape(w.shape)
        own, total = jnp.sum(x**2, axis=(-2, -1)), metric.loss(w)
        scale = jnp.sqrt(jnp.where(own > 0, total / jnp.where(own > 0, own, 1), 0))
        return x * scale[..., None, None]

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks below break-even with the losses of short fits, interpolated between a few."""
        *stack, m, n = layout.matrix_shape(shape)
        modes, _ = self.cut_modes((m, n))
        count = math.prod(stack)
        x = jnp.asarray(spectrum, jnp.float32).reshape(count, *modes)

        def loss(rank: int) -> float:
            _, info = cp(x, rank, stack=1, starts=1, sweeps=PROBE_SWEEPS, slack=0.0)
            return float(jnp.sum(info.residual**2))

        if self.rank is None:
            ranks, error = rank_curve((m * n - 1) // (1 + sum(modes)), loss)
        else:
            ranks, error = np.array([self.rank]), np.array([loss(self.rank)])
        costs = [cost(_abstract(modes, int(r), (m, n), dtype)) for r in ranks]
        params, flops = (np.array([getattr(c, f) for c in costs]) for f in ("params", "flops"))
        return Options(ranks, count * params, count * flops, error)

    def with_rank(self, rank: int) -> Self:
        """The spec with this number of terms."""
        return dataclasses.replace(self, rank=int(rank))

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The unfoldings along every mode, [*S, n_k, rest]: the rank is no less than theirs."""
        modes, _ = self.cut_modes(w.shape[-2:])
        stack = w.ndim - 2
        x = w.reshape(*w.shape[:-2], *modes)
        front = (np.moveaxis(x, stack + k, stack) for k in range(len(modes)))
        return [y.reshape(*y.shape[: stack + 1], -1) for y in front]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The largest rank of the unfoldings: the least that the terms can have."""
        return self.with_rank(max(ranks))

    def cut_modes(self, matrix: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The modes, and how many of them are rows; ShapeError if they do not make the matrix."""
        m, n = matrix
        modes = self.modes or (m, n)
        for cut in range(1, len(modes)):
            if len(modes) > 2 and (math.prod(modes[:cut]), math.prod(modes[cut:])) == (m, n):
                return modes, cut
        got, expected = f"modes {modes} for a {m} x {n} matrix", "three or more, rows then columns"
        todo = "Give sizes of rows, then of columns, e.g. modes=(kh * kw, cin, cout)."
        raise ShapeError(message(got=got, expected=expected, todo=todo))


@solve.register
def solve_cp(
    spec: CP,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[CPWeight, CPInfo]:
    """The spec's sum of rank-one tensors; see `lrjax.decompose.cp.cp`.

    A metric is applied mode by mode. The factors have the weight's dtype; the residual is theirs,
    in the whole metric.

    Raises:
      RankError: the rank is not given, or below one.
      ShapeError: the modes do not fit the matrix.
    """
    if spec.rank is None:
        todo = "Plan it, or give a rank."
        raise RankError(message(got="CP() without a rank", expected="a rank", todo=todo))
    stack, matrix = w.shape[:-2], w.shape[-2:]
    modes, cut = spec.cut_modes(matrix)
    metric = (metric or Metric()).broadcast(stack)
    x, back = whiten_modes(w, metric, modes, cut)
    found, info = cp(
        x, spec.rank, stack=len(stack), key=key,
        starts=spec.starts, sweeps=spec.sweeps, slack=spec.slack,
    )  # fmt: skip
    return _stored(found, info, back, w, metric)


@jax.jit
def _stored(
    found: CPWeight, info: CPInfo, back: list[Array | None], w: Array, metric: Metric
) -> tuple[CPWeight, CPInfo]:
    """The weight in its own unit, dims and dtype, and what is true of it."""
    undo = lambda f, inverse: f if inverse is None else jnp.matmul(inverse, f, precision="highest")
    factors = [undo(f, inverse) for f, inverse in zip(found.factors, back, strict=True)]
    scale, columns = canonical(found.scale, factors)
    rows, cols = ((size,) for size in w.shape[-2:])
    failed = info.status == int(Status.NON_FINITE)
    scale, *columns = (_zero(failed, x) for x in (scale, *columns))
    found = CPWeight(scale, tuple(columns), rows=rows, cols=cols).astype(w.dtype)
    missed = metric.norm(working(w) - working(found.densify()))
    residual = jnp.where(failed, jnp.nan, missed)
    return found, dataclasses.replace(info, residual=residual, intensity=found.intensity)


def _zero(failed: Array, x: Array) -> Array:
    """Zeros where a solve of the stack failed."""
    return jnp.where(failed.reshape(*failed.shape, *(1,) * (x.ndim - failed.ndim)), 0, x)


def _abstract(modes: tuple[int, ...], rank: int, matrix: tuple[int, int], dtype: Any) -> CPWeight:
    """A weight of these sizes without values."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    factors = tuple(array(d, rank) for d in modes)
    return CPWeight(array(rank), factors, rows=(matrix[0],), cols=(matrix[1],))
