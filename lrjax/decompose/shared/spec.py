"""The shared-basis spec: which sides, what ranks, and the options that the planner compares."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from lrjax.decompose.shared.fit import SWEEPS, check_rank, pooled, shared_basis, times, weigh
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.layout import Layout
from lrjax.formats.shared_basis import SharedBasis as SharedBasisWeight
from lrjax.linalg.info import Info
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.metrics import Metric

LEVELS = 48
"""Thresholds tried for two bases."""


@dataclasses.dataclass(frozen=True, repr=False)
class SharedBasis(Spec):
    """One basis for the inputs, the outputs or both of a stack of weights, and a core for each.

    The last stack axis (layers under a scan, heads, experts) shares. Layers that are leaves of
    their own share nothing: stack them first, as a scanned model does. Heads that are columns of
    one matrix share a left basis under `SVD` already.

    Attributes:
        rank: of the left basis; or (left, right), 0 for none; or left to the plan.
        left: whether the plan may share a basis of the inputs.
        right: whether it may share one of the outputs.
        sweeps: most sweeps of least squares, where the entries have metrics of their own.
    """

    rank: int | tuple[int, int] | None = None
    left: bool = dataclasses.field(default=True, kw_only=True)
    right: bool = dataclasses.field(default=True, kw_only=True)
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """What each direction of the pooled bases explains, as roots [*B, 2, k + 1], left first.

        The last value is what no direction explains. Squared tails are the losses that one basis
        reaches at every rank, with the best cores: exact, and lowered by sweeps at most.
        """
        if w.ndim < 3:
            return jnp.zeros((2, 1))
        rows, cols = metric.broadcast(w.shape[:-2]).arrays()
        arrays = [working(x) if x is not None else None for x in (w, rows, cols)]
        return jnp.sqrt(jnp.maximum(over_stack(_energies, arrays, core=3), 0))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks of one basis, and pairs of ranks of two, below the dense weight's size.

        The loss of two bases is the sum of both tails, which bounds it from above.
        """
        *stack, m, n = layout.matrix_shape(shape)
        if not stack:
            return Options(np.zeros((0, 2), int), *(np.zeros(0) for _ in range(3)))  # pyright: ignore
        count, outer = stack[-1], math.prod(stack[:-1])
        energy = np.asarray(spectrum, np.float64) ** 2
        energy = energy.reshape(-1, *energy.shape[-2:]).sum(0)
        tails = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
        tails = np.concatenate([tails, tails[:, -1:]], axis=1)
        if self.rank is not None:
            pairs = [self.ranks]
            check_rank((count, m, n), self.ranks)
        else:
            pairs = self._ladder(energy, (count, m, n))
        r, q = np.array(pairs, int).reshape(-1, 2).T
        inner, outwards = np.where(r > 0, r, m), np.where(q > 0, q, n)
        left, right = np.where(r > 0, m * r, 0), np.where(q > 0, q * n, 0)
        params = outer * (left + right + count * inner * outwards)
        flops = 2 * outer * count * (left + right + inner * outwards)
        error = np.where(r > 0, tails[0][r], 0) + np.where(q > 0, tails[1][q], 0)
        return Options(np.stack([r, q], axis=1), params, flops, error)

    def with_rank(self, rank: Any) -> Self:
        """The spec with these ranks."""
        return dataclasses.replace(self, rank=tuple(int(r) for r in np.atleast_1d(rank)))

    @property
    def ranks(self) -> tuple[int, int]:
        """The ranks of the left and the right basis; RankError if none are given."""
        if self.rank is None:
            todo = "Plan it, or give a rank."
            raise RankError(message(got="SharedBasis() without a rank", expected="one", todo=todo))
        rank = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        return (*rank, 0, 0)[:2]  # pyright: ignore

    def _ladder(self, energy: np.ndarray, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Pairs of ranks: each side alone, and both at a common threshold."""
        count, m, n = shape
        pairs: dict[tuple[int, int], None] = {}
        if self.left:
            pairs |= dict.fromkeys((r, 0) for r in range(1, min(m, count * n) + 1))
        if self.right:
            pairs |= dict.fromkeys((0, q) for q in range(1, min(n, count * m) + 1))
        if self.left and self.right:
            e = energy[:, :-1]
            peak = max(float(e.max(initial=0)), 1e-300)
            for level in np.geomspace(peak, 1e-10 * peak, LEVELS):
                r, q = (
                    min(max(int(np.sum(s >= level)), 1), d) for s, d in zip(e, (m, n), strict=True)
                )
                pairs.setdefault((min(r, count * q), min(q, count * r)))
        return list(pairs)


@solve.register
def solve_shared(
    spec: SharedBasis,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[SharedBasisWeight, Info]:
    """The spec's bases and cores; see `lrjax.decompose.shared.shared_basis`.

    The factors have the weight's dtype, and the residual is that of the cast factors.

    Raises:
      RankError: no rank is given, or one that is out of range.
      ShapeError: the weight has no stack axis.
    """
    if w.ndim < 3:
        todo = "Stack the weights that are to share, or use SVD."
        raise ShapeError(message(got=f"shape {w.shape}", expected="a stack axis", todo=todo))
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    rows, cols = metric.arrays()
    found, info = shared_basis(w, spec.ranks, rows=rows, cols=cols, sweeps=spec.sweeps)
    if w.dtype == working(w).dtype:
        return found, info
    missed = metric.loss(working(w) - working(found.densify()))
    residual = jnp.where(jnp.isnan(info.residual), jnp.nan, jnp.sqrt(jnp.maximum(missed, 0)))
    return found, dataclasses.replace(info, residual=residual)


def _energies(w: Array, rows: Array | None, cols: Array | None) -> Array:
    """Loss that each direction of both pooled bases takes away, and what none does, [2, k + 1]."""
    flip = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    size = max(w.shape[1:])
    total = jnp.sum(times(weigh(rows, w), cols) * w)
    explained = []
    for x, a, g in ((w, rows, cols), (flip(w), cols, rows)):
        own = _explained(x, a, g)
        rest = jnp.maximum(total - jnp.sum(own), 0)
        explained.append(jnp.append(jnp.pad(own, (0, size - own.shape[0])), rest))
    return jnp.stack(explained)


def _explained(w: Array, rows: Array | None, cols: Array | None) -> Float[Array, " m"]:
    """The pooled directions, orthogonalised in their order under each entry's own metric."""
    basis = pooled(w, rows, cols)

    def one(w: Array, a: Array | None, g: Array | None) -> Array:
        weighted = basis if a is None else a[:, None] * basis if a.ndim == 1 else dot(a, basis)
        gram = dot(basis.T, weighted)
        level = 1e-6 * jnp.trace(gram) / gram.shape[0]
        level = jnp.where(level > 0, level, 1)
        lower = jnp.linalg.cholesky(gram + level * jnp.eye(gram.shape[0], dtype=gram.dtype))
        image = dot(weighted.T, w)
        image = lax.linalg.triangular_solve(lower, image, left_side=True, lower=True)
        shown = image if g is None else image * g if g.ndim == 1 else dot(image, g)
        return jnp.sum(image * shown, axis=1)

    return jnp.sum(over_stack(one, [w, rows, cols], core=2), axis=0)
