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

RIDGES = 1e-5, 1e-2
"""Relative ridges of the metric between basis vectors: they raise a predicted loss, never lower
it; the second where rounding left the matrix indefinite."""


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
        tile: ranks left to the plan are multiples of it, or the whole side.
    """

    rank: int | tuple[int, int] | None = None
    left: bool = dataclasses.field(default=True, kw_only=True)
    right: bool = dataclasses.field(default=True, kw_only=True)
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)
    tile: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if not (self.left or self.right):
            got, todo = "SharedBasis(left=False, right=False)", "Allow one."
            raise RankError(message(got=got, expected="a side that may share", todo=todo))

    def measure(self, w: Array, metric: Metric) -> Array:
        """What each direction of the pooled bases explains, as roots [*B, 2, k + 1], left first.

        The last value is what no direction explains. Squared tails are the losses that one basis
        reaches at every rank, with the best cores: exact, and lowered by sweeps at most.
        """
        if w.ndim < 3:
            raise _unstacked(w.shape)
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
            raise _unstacked((m, n))
        count, outer = stack[-1], math.prod(stack[:-1])
        energy = np.asarray(spectrum, np.float64) ** 2
        energy = energy.reshape(-1, *energy.shape[-2:]).sum(0)
        tails = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
        tails = np.concatenate([tails, tails[:, -1:]], axis=1)
        if self.rank is not None:
            pairs = [self.pair]
            check_rank((count, m, n), self.pair)
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
        return dataclasses.replace(self, rank=tuple(int(r) for r in np.atleast_1d(rank)), tile=1)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`options` has seen to it."""
        return True

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """All columns side by side [*B, m, S n], and all rows [*B, n, S m]: the sides allowed.

        Raises:
          ShapeError: the weight has no stack axis.
        """
        if w.ndim < 3:
            raise _unstacked(w.shape)
        m, n = w.shape[-2:]
        side = lambda x, d: np.moveaxis(x, -3, -2).reshape(*w.shape[:-3], d, -1)
        both = [(self.left, w, m), (self.right, np.swapaxes(w, -1, -2), n)]
        return [side(x, d) for allowed, x, d in both if allowed]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Each side's rank; a side of full rank gets no basis, unless both have."""
        *_, count, m, n = shape
        found = list(ranks)
        r = found.pop(0) if self.left else 0
        q = found.pop(0) if self.right else 0
        r, q = (0 if r >= m and 0 < q < n else r), (0 if q >= n and 0 < r < m else q)
        return self.with_rank((min(r, count * (q or n)), min(q, count * (r or m))))

    @property
    def pair(self) -> tuple[int, int]:
        """The ranks of the left and the right basis; RankError if none are given."""
        if self.rank is None:
            todo = "Plan it, or give a rank."
            raise RankError(message(got="SharedBasis() without a rank", expected="one", todo=todo))
        rank = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        return (*rank, 0, 0)[:2]  # pyright: ignore

    def _ladder(self, energy: np.ndarray, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        """Pairs of ranks: each side alone, and both at a common threshold."""
        count, m, n = shape
        most = min(m, count * n), min(n, count * m)
        ladder = lambda size: [r for r in range(1, size + 1) if r % self.tile == 0 or r == size]
        pairs = [(r, 0) for r in ladder(most[0]) if self.left]
        pairs += [(0, q) for q in ladder(most[1]) if self.right]
        if self.left and self.right:
            values = energy[:, :-1]
            peak = max(float(values.max(initial=0)), 1e-300)
            for level in np.geomspace(peak, 1e-10 * peak, LEVELS):
                above = [max(int(np.sum(v >= level)), 1) for v in values]
                rounded = (-(-k // self.tile) * self.tile for k in above)
                r, q = (min(k, size) for k, size in zip(rounded, most, strict=True))
                pairs.append((min(r, count * q), min(q, count * r)))
        return list(dict.fromkeys(pairs))


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

    Raises:
      RankError: no rank is given, or one that is out of range.
      ShapeError: the weight has no stack axis.
    """
    if w.ndim < 3:
        raise _unstacked(w.shape)
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    rows, cols = metric.arrays()
    return shared_basis(w, spec.pair, rows=rows, cols=cols, sweeps=spec.sweeps)


def _unstacked(shape: Sequence[int]) -> ShapeError:
    todo = "Stack the weights that are to share, or use SVD."
    return ShapeError(message(got=f"shape {tuple(shape)}", expected="a stack axis", todo=todo))


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
        gram, image = dot(basis.T, weighted), dot(weighted.T, w)
        level = jnp.trace(gram) / gram.shape[0]
        level = jnp.where(level > 0, level, 1)

        def explained(ridge: float) -> Array:
            lower = jnp.linalg.cholesky(gram + ridge * level * jnp.eye(len(gram), dtype=w.dtype))
            z = lax.linalg.triangular_solve(lower, image, left_side=True, lower=True)
            return jnp.sum(z * (z if g is None else z * g if g.ndim == 1 else dot(z, g)), axis=1)

        first, second = (explained(ridge) for ridge in RIDGES)
        return jnp.where(jnp.all(jnp.isfinite(first)), first, second)

    return jnp.nan_to_num(jnp.sum(over_stack(one, [w, rows, cols], core=2), axis=0))
