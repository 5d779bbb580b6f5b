"""Rows and columns in an order that gives blocks a meaning, and a spec in that order."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.spec import Options, Spec, solve, spec_from_json
from lrjax.errors import RuleError, message
from lrjax.formats.layout import Layout
from lrjax.formats.permuted import Order, Permuted, check_orders
from lrjax.linalg import Info
from lrjax.metrics import Diagonal, Elements, Gram, Metric


def seriate(w: Float[np.ndarray, "m n"]) -> tuple[Order, Order]:
    """Orders of rows and columns that bring large entries together, on the host.

    The graph whose edges between rows and columns are |W| is laid out on a line: the second
    singular vectors of |W| with rows and columns scaled to equal sums (Dhillon, 2001) place what is
    joined strongly side by side, and sorting them recovers a shuffled kernel.

    Args:
      w: one matrix; of a stack, for instance the sum of magnitudes.
    """
    size = np.abs(np.asarray(w, np.float64))
    scale = lambda x: 1 / np.sqrt(np.where(x > 0, x, 1))
    rows, cols = scale(size.sum(1)), scale(size.sum(0))
    u, _, vt = np.linalg.svd(rows[:, None] * size * cols, full_matrices=False)
    if len(vt) < 2:
        return tuple(range(size.shape[0])), tuple(range(size.shape[1]))
    order = lambda x: tuple(np.argsort(x, kind="stable").tolist())
    return order(u[:, 1] * rows), order(vt[1] * cols)


@dataclasses.dataclass(frozen=True, repr=False)
class Reordered(Spec):
    """Another spec, for the matrix with its rows and columns in a given order.

    The order is part of the plan, for shapes and gathers hang on it: `seriate` finds one. Low rank
    does not change with the order; blocks and hierarchies do.

    Attributes:
        inner: the format of the reordered matrix.
        rows: row rows[i] of the weight comes i-th; None keeps the order.
        cols: likewise for columns.

    Raises:
        RuleError: the inner spec has a metric, or a rule for its rank, of its own.
    """

    inner: Spec
    rows: Order | None = dataclasses.field(default=None, metadata={"indices": True})
    cols: Order | None = dataclasses.field(default=None, metadata={"indices": True})

    def __post_init__(self):
        super().__post_init__()
        if self.inner.metric is not None or self.inner.rank_by is not None:
            got, todo = f"Reordered of {self.inner!r}", "Give them to Reordered."
            expected = "metric and rank_by outside of the inner spec"
            raise RuleError(message(got=got, expected=expected, todo=todo))

    @property
    def is_fixed(self) -> bool:
        """Whether the inner spec says its own size."""
        return self.inner.is_fixed

    def measure(self, w: Array, metric: Metric) -> Any:
        """What the inner spec measures of the reordered matrix."""
        return self.inner.measure(*self.reordered(w, metric))

    def options(self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: Any) -> Options:
        """Those of the inner spec: an order costs no parameters and no arithmetic."""
        return self.inner.options(shape, dtype, layout, spectrum)

    def with_rank(self, rank: Any) -> Self:
        """The inner spec with this size."""
        return dataclasses.replace(self, inner=self.inner.with_rank(rank))

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """Those of the inner spec, of the reordered matrix."""
        return self.inner.unfoldings(self._moved(w))

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The inner spec with these."""
        return dataclasses.replace(self, inner=self.inner.with_unfolding_ranks(ranks, shape))

    def tiled(self, tile: int) -> Self:
        """The inner spec with this tile."""
        return dataclasses.replace(self, inner=self.inner.tiled(tile))

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """Whether a rank suits the inner spec."""
        return self.inner.is_aligned(rank, tile)

    def reordered(self, w: Array, metric: Metric) -> tuple[Array, Metric]:
        """Matrices [*S, m, n] and their metric in the order; ShapeError if they have another."""
        own = dataclasses.replace(
            metric, rows=_side(metric.rows, self.rows), cols=_side(metric.cols, self.cols)
        )
        if own.mean is not None:
            own = dataclasses.replace(own, mean=_placed(own.mean, self.rows, -1))
        if isinstance(own, Elements):
            own = dataclasses.replace(own, weights=self._moved(own.weights))
        return self._moved(w), own

    def _moved(self, x: Any) -> Any:
        check_orders(self.rows, self.cols, x.shape)
        return _placed(_placed(x, self.rows, -2), self.cols, -1)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the inner spec's in it."""
        return {**super().to_json(), "inner": self.inner.to_json()}

    @classmethod
    def field_from_json(cls, name: str, value: Any) -> Any:
        """The inner spec from its object."""
        return spec_from_json(value) if name == "inner" else super().field_from_json(name, value)

    def __repr__(self) -> str:
        return f"Reordered({self.inner!r})"


def _side(side: Any, order: Order | None) -> Any:
    match side:
        case Diagonal(values):
            return Diagonal(_placed(values, order, -1))
        case Gram(matrix):
            return Gram(_placed(_placed(matrix, order, -2), order, -1))
    return side


def _placed(x: Any, order: Order | None, axis: int) -> Any:
    """The array in an order along an axis."""
    return x if order is None else x.take(np.array(order), axis=axis)


@solve.register
def solve_reordered(
    spec: Reordered,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[Permuted, Info]:
    """The inner solver on the reordered matrix; raises what it raises."""
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    moved, own = spec.reordered(w, metric)
    found, info = solve(spec.inner, moved, metric=own, key=key, init=init)
    return Permuted(found, spec.rows, spec.cols), info
