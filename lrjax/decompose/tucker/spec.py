"""The Tucker spec: which modes, what ranks, and the options that the planner compares."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.spec import Options, Spec, solve
from lrjax.decompose.tucker.hooi import SWEEPS, TOL, check_ranks, roots, tucker
from lrjax.decompose.tucker.whitening import mode_grams
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.layout import Layout
from lrjax.formats.tucker import Tucker as TuckerWeight
from lrjax.linalg import Info
from lrjax.linalg.stack import working
from lrjax.linalg.tensor import mode_product
from lrjax.metrics import Metric
from lrjax.ops import cost

LEVELS = 64
"""Thresholds tried for `options`; neighbours differ by less than 2 % in parameters."""


@dataclasses.dataclass(frozen=True)
class Tucker(Spec):
    """W = a core, and a factor for each compressed mode; for convolutions on the channels only.

    Attributes:
        rank: one for each mode, None for a mode that is not compressed; or left to the plan.
        modes: sizes into which rows, then columns, are cut; by default the weight's own dimensions
            (`fitted`), or the matrix as it is.
        smallest: modes of fewer entries (the window of a convolution) are not compressed.
        sweeps: most sweeps of HOOI; 0 is ST-HOSVD.
        tol: relative decrease of the squared error that ends them.
        tile: ranks left to the plan are multiples of it, or the whole mode.
    """

    rank: tuple[int | None, ...] | None = None
    modes: tuple[int, ...] | None = dataclasses.field(default=None, kw_only=True)
    smallest: int = dataclasses.field(default=16, kw_only=True)
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)
    tol: float = dataclasses.field(default=TOL, kw_only=True)
    tile: int = dataclasses.field(default=1, kw_only=True)

    def fitted(self, shape: Sequence[int], layout: Layout) -> Self:
        """The spec with the dimensions of a weight of this shape as modes, where none are given."""
        if self.modes is not None:
            return self
        _, rows, cols = layout.resolve(len(shape))
        return dataclasses.replace(self, modes=tuple(shape[d] for d in (*rows, *cols)))

    def measure(self, w: Array, metric: Metric) -> Array:
        """The weight whitened mode by mode, [*S, m, n]: its squares sum to the loss of dropping it.

        The spectra of its modes bound the loss at any ranks: the host takes them in `options`.
        """
        modes, cut = self._modes(w.shape[-2:])
        stack = w.ndim - 2
        chosen = self._compressed(modes)
        metric = metric.broadcast(w.shape[:-2])
        grams = mode_grams(metric, modes, cut, chosen)
        x = working(w).reshape(*w.shape[:-2], *modes)
        for k, gram in enumerate(grams):
            if gram is not None:
                flat = x.reshape(-1, *modes)
                each = lambda x, g, k=k: mode_product(x, roots(g)[0], k)
                gram = gram.reshape(-1, *gram.shape[stack:])
                x = jax.vmap(each)(flat, gram).reshape(x.shape)
        x = x.reshape(w.shape)
        own, total = jnp.sum(x**2, axis=(-2, -1)), metric.loss(w)
        scale = jnp.sqrt(jnp.where(own > 0, total / jnp.where(own > 0, own, 1), 0))
        return x * scale[..., None, None]

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """Ranks that keep all singular values of all modes above a threshold, for many thresholds.

        The error is the sum of the modes' tails, an upper bound of that of ST-HOSVD, mode-wise
        whitened.
        """
        *stack, m, n = layout.matrix_shape(shape)
        modes, _ = self._modes((m, n))
        energies = _mode_energies(np.asarray(spectrum, np.float64), modes, self._compressed(modes))
        ranks = [self.rank] if self.rank is not None else _ladder(modes, energies, self.tile)
        ranks = [check_ranks(modes, r) for r in ranks]
        costs = [cost(_abstract(modes, r, (m, n), dtype)) for r in ranks]
        errors = [_tails(energies, r) for r in ranks]
        count = math.prod(stack)
        sizes = np.array([[k if r is None else r for r, k in zip(rank, modes, strict=True)]
                          for rank in ranks])  # fmt: skip
        params, flops = (np.array([getattr(c, f) for c in costs]) for f in ("params", "flops"))
        return Options(sizes, count * params, count * flops, np.array(errors))

    def with_rank(self, rank: Any) -> Self:
        """The spec with these sizes of the core; the uncompressed modes stay so."""
        rank = tuple(int(r) for r in rank)
        if self.modes is not None:
            chosen = self._compressed(self.modes)
            rank = tuple(r if k in chosen else None for k, r in enumerate(rank))
        return dataclasses.replace(self, rank=rank, tile=1)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """Whole modes need no rounding, and `options` has seen to the others."""
        return True

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The unfoldings along the compressed modes, [*S, n_k, rest]."""
        modes, _ = self._modes(w.shape[-2:])
        x = w.reshape(*w.shape[:-2], *modes)
        stack = w.ndim - 2
        front = (np.moveaxis(x, stack + k, stack) for k in self._compressed(modes))
        return [y.reshape(*y.shape[: stack + 1], -1) for y in front]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """Mode by mode, none above what the others span."""
        modes, _ = self._modes(shape[-2:])
        found = dict(zip(self._compressed(modes), ranks, strict=True))
        found = _consistent(found, modes)
        return dataclasses.replace(self, rank=tuple(found.get(k) for k in range(len(modes))))

    def _modes(self, matrix: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """The modes, and how many of them are rows."""
        m, n = matrix
        modes = self.modes or (m, n)
        if self.rank is not None and len(self.rank) != len(modes):
            got, expected = f"ranks {self.rank} for modes {modes}", "a rank, or None, for each"
            raise RankError(message(got=got, expected=expected, todo="Give one rank a mode."))
        for cut in range(1, len(modes)):
            if math.prod(modes[:cut]) == m and math.prod(modes[cut:]) == n:
                return modes, cut
        todo = "Give sizes of rows, then of columns, e.g. modes=(kh, kw, cin, cout)."
        got, expected = f"modes {modes} for a {m} x {n} matrix", f"{m} rows and {n} columns"
        raise ShapeError(message(got=got, expected=expected, todo=todo))

    def _compressed(self, modes: tuple[int, ...]) -> tuple[int, ...]:
        if self.rank is not None and len(self.rank) == len(modes):
            return tuple(k for k, r in enumerate(self.rank) if r is not None)
        return tuple(k for k, n in enumerate(modes) if n >= self.smallest)


@solve.register
def solve_tucker(
    spec: Tucker,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: TuckerWeight | None = None,
) -> tuple[TuckerWeight, Info]:
    """ST-HOSVD and sweeps at the spec's ranks; see `lrjax.decompose.tucker.tucker`.

    A metric is applied mode by mode: exactly where rows and columns are one mode each; of several
    modes a Gram is taken as the Kronecker product of its partial traces. The residual is that of
    the whole metric, and of the stored factors.

    Raises:
      RankError: the spec has no rank, or one that is out of range.
      ShapeError: the modes do not fit the matrix.
    """
    if spec.rank is None:
        todo = "Plan it, or give a rank to each mode."
        raise RankError(message(got="Tucker() without ranks", expected="ranks", todo=todo))
    modes, cut = spec._modes(w.shape[-2:])
    stack = w.shape[:-2]
    metric = (metric or Metric()).broadcast(stack)
    chosen = tuple(k for k, r in enumerate(spec.rank) if r is not None)
    grams = mode_grams(metric, modes, cut, chosen)
    x = w.reshape(*stack, *modes)
    found, info = tucker(
        x, spec.rank, grams=grams, key=key, init=init, sweeps=spec.sweeps, tol=spec.tol
    )
    found = dataclasses.replace(found, rows=w.shape[-2:-1], cols=w.shape[-1:])
    if metric.rows is None and metric.cols is None and w.dtype == working(w).dtype:
        return found, info
    missed = metric.norm(working(w) - working(found.densify()))
    residual = jnp.where(jnp.isnan(info.residual), jnp.nan, missed)
    return found, dataclasses.replace(info, residual=residual)


def _abstract(modes, ranks, matrix, dtype) -> TuckerWeight:
    """A weight of these sizes without values."""
    array = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    core = array(*(n if r is None else r for n, r in zip(modes, ranks, strict=True)))
    factors = (None if r is None else array(n, r) for n, r in zip(modes, ranks, strict=True))
    return TuckerWeight(core, tuple(factors), rows=(matrix[0],), cols=(matrix[1],))


def _mode_energies(x: np.ndarray, modes, chosen) -> dict[int, np.ndarray]:
    """Squared singular values of each compressed mode's unfolding, falling, summed over a stack."""
    x = x.reshape(-1, *modes)
    energies = {}
    for k in chosen:
        flat = np.moveaxis(x, k + 1, 1).reshape(len(x), modes[k], -1)
        values = np.linalg.eigvalsh(flat @ flat.swapaxes(1, 2))[:, ::-1]
        energies[k] = np.maximum(values, 0).sum(0)
    return energies


def _ladder(modes: tuple[int, ...], energies: dict[int, np.ndarray], tile: int) -> list[tuple]:
    """Ranks by one threshold for all modes: equal marginal loss in each."""
    values = np.concatenate([e[e > 0] for e in energies.values()] or [np.ones(1)])
    found: dict[tuple, None] = {}
    for level in np.geomspace(values.max(), max(values.min(), values.max() * 1e-12), LEVELS):
        ranks = {k: max(int(np.sum(e >= level)), 1) for k, e in energies.items()}
        ranks = {k: min(-(-r // tile) * tile, modes[k]) for k, r in ranks.items()}
        ranks = _consistent(ranks, modes)
        found.setdefault(tuple(ranks.get(k) for k in range(len(modes))))
    return list(found)


def _consistent(ranks: dict[int, int], modes: tuple[int, ...]) -> dict[int, int]:
    """No mode above its size, nor above what the others span."""
    ranks = {k: min(r, modes[k]) for k, r in ranks.items()}
    for k in ranks:
        others = [ranks.get(j, n) for j, n in enumerate(modes) if j != k]
        ranks[k] = min(ranks[k], math.prod(others))
    return ranks


def _tails(energies: dict[int, np.ndarray], ranks: Sequence[int | None]) -> float:
    return float(sum(e[ranks[k] :].sum() for k, e in energies.items() if ranks[k] is not None))
