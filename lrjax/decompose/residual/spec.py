"""The specs of low rank plus a sparse or a diagonal part, and the options that are compared."""

import dataclasses
import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from lrjax.decompose.residual import parts
from lrjax.decompose.residual.alternate import alternate, loss, together
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.decompose.svd import max_rank
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats import Diagonal, LowRank, Sparse, Sum
from lrjax.formats.layout import Layout
from lrjax.formats.sparse import WIDEST
from lrjax.linalg import Info, weighted_svd
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.truncated import check_rank
from lrjax.metrics import Metric
from lrjax.ops import cost

POINTS = 16
"""Ranks of a ladder; neighbours differ by the same ratio."""

COUNTS = (1, 4, 16)
"""Entries a group that the plan compares."""

SWEEPS = 20
"""Most turns: after the first few the loss falls by parts of a percent."""


@dataclasses.dataclass(frozen=True, repr=False)
class _Additive(Spec):
    """Low rank plus another part: `rank` is the rank, and what else sets the part's size."""

    rank: Any = None
    sweeps: int = dataclasses.field(default=SWEEPS, kw_only=True)
    tile: int = dataclasses.field(default=1, kw_only=True)

    @abstractmethod
    def sizes(self, matrix: Sequence[int]) -> list[tuple[int, ...]]:
        """What `rank` may be for a matrix, ranks first; one if it is given."""

    @abstractmethod
    def fit(self, matrix: Sequence[int], size: tuple[int, ...]) -> tuple[Callable, Callable]:
        """The part's fit and its matrix, as `alternate` takes them."""

    @abstractmethod
    def blank(self, matrix: Sequence[int], size: tuple[int, ...], array: Callable) -> Any:
        """The part of a weight, its arrays made by `array(*shape)`."""

    def measure(self, w: Array, metric: Metric) -> Array:
        """The root of what one turn of each of the `sizes` leaves, [*S, k]: turns only lower it."""
        rows, cols = metric.broadcast(w.shape[:-2]).arrays()
        sizes = self.sizes(w.shape[-2:])
        most = max(size[0] for size in sizes)
        families = list(dict.fromkeys(size[1:] for size in sizes))

        def single(w: Array, rows: Array | None, cols: Array | None) -> Array:
            left, right, _, _ = weighted_svd(w, most, rows=rows, cols=cols)
            lost = []
            for rest_of in families:
                ranks = jnp.array([size[0] for size in sizes if size[1:] == rest_of])
                fit, dense = self.fit(w.shape, (0, *rest_of))

                def one(rank: Array, fit=fit, dense=dense) -> Array:
                    rest = w - dot(left * (jnp.arange(most) < rank), right)
                    return loss(rest - dense(fit(rest, rows, cols, None)), rows, cols)

                lost.append(lax.map(one, ranks))
            order = [size for rest_of in families for size in sizes if size[1:] == rest_of]
            place = np.array([order.index(size) for size in sizes])
            return jnp.sqrt(jnp.maximum(jnp.concatenate(lost)[place], 0))

        arrays = [None if x is None else working(x) for x in (w, rows, cols)]
        return over_stack(single, arrays, core=2)

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """All `sizes` with the losses of one turn."""
        *stack, m, n = layout.matrix_shape(shape)
        sizes, count = self.sizes((m, n)), math.prod(stack)
        energy = np.asarray(spectrum, np.float64).reshape(count, -1) ** 2
        array = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
        weights = [
            Sum((LowRank(array(m, s[0]), array(s[0], n)), self.blank((m, n), s, array)))
            for s in sizes
        ]
        costs = [cost(w) for w in weights]
        params, flops = (np.array([getattr(c, f) for c in costs]) for f in ("params", "flops"))
        return Options(np.array(sizes), count * params, count * flops, energy.sum(0))

    def with_rank(self, rank: Any) -> Self:
        """The spec with one of its `sizes`."""
        size = tuple(int(r) for r in np.atleast_1d(rank))
        return dataclasses.replace(self, rank=size[0] if len(size) == 1 else size, tile=1)

    def tiled(self, tile: int) -> Self:
        """The spec with this tile."""
        return dataclasses.replace(self, tile=tile)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """`sizes` has seen to it."""
        return True

    def given(self, matrix: Sequence[int]) -> tuple[int, ...]:
        """The size that the spec fixes; RankError if it fixes none, or an impossible one."""
        if self.rank is None:
            todo = "Plan it, or give a rank."
            got = f"{type(self).__name__}() without a rank"
            raise RankError(message(got=got, expected="one", todo=todo))
        size = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        check_rank(size[0], (matrix[0], matrix[1]))
        return size

    def ladder(self, matrix: Sequence[int]) -> list[int]:
        """Ranks up to break-even, multiples of the tile."""
        most = max(max_rank((matrix[0], matrix[1])), 1)
        ranks = np.round(np.geomspace(1, most, POINTS)).astype(int)
        ranks = np.minimum(-(-ranks // self.tile) * self.tile, most)
        return [int(r) for r in np.unique(ranks) if r % self.tile == 0]


@dataclasses.dataclass(frozen=True, repr=False)
class LowRankSparse(_Additive):
    """W = left @ right + a few entries of every group of a column, found by turns.

    For weights whose outliers no few directions hold. An entry costs two parameters, its value and
    its index.

    Attributes:
        rank: (rank, entries a group), or left to the plan; a number alone is the rank, with one
            entry.
        group: rows of a group, a divisor of the rows, at most 256; by default the largest.
        sweeps: most turns.
        tile: ranks left to the plan are multiples of it.
    """

    rank: int | tuple[int, int] | None = None
    group: int | None = dataclasses.field(default=None, kw_only=True)

    def sizes(self, matrix: Sequence[int]) -> list[tuple[int, ...]]:
        """Ranks and entries a group."""
        group = self.grouping(matrix[0])
        if self.rank is not None:
            return [self.given(matrix)]
        return [(r, k) for k in COUNTS if k <= group for r in self.ladder(matrix)]

    def given(self, matrix: Sequence[int]) -> tuple[int, ...]:
        """The rank and the entries a group."""
        rank, count = (*super().given(matrix), 1)[:2]
        if not 1 <= count <= self.grouping(matrix[0]):
            got, todo = f"{count} entries in a group of {self.grouping(matrix[0])}", "Lower it."
            raise RankError(message(got=got, expected="at least 1, at most all", todo=todo))
        return rank, count

    def grouping(self, rows: int) -> int:
        """Rows of a group.

        Raises:
          ShapeError: none is given and the rows have no useful divisor, or the given one divides
            them not.
        """
        group = self.group or max(d for d in range(1, min(rows, WIDEST) + 1) if rows % d == 0)
        if rows % group or group > WIDEST or (self.group is None and group < min(rows, 8)):
            got, todo = f"groups of {group} for {rows} rows", "Give a divisor as group."
            expected = f"a divisor of {rows}, at most {WIDEST}"
            raise ShapeError(message(got=got, expected=expected, todo=todo))
        return group

    def fit(self, matrix: Sequence[int], size: tuple[int, ...]) -> tuple[Callable, Callable]:
        """The largest entries, with their best values."""
        group = self.grouping(matrix[0])
        fit = functools.partial(parts.sparse, group=group, count=size[1])
        return fit, functools.partial(parts.scattered, group=group)

    def blank(self, matrix: Sequence[int], size: tuple[int, ...], array: Callable) -> Any:
        """Values and index [n, g, k]."""
        group = self.grouping(matrix[0])
        shape = (matrix[1], matrix[0] // group, size[1])
        return Sparse(array(*shape), array(*shape), group)


@dataclasses.dataclass(frozen=True, repr=False)
class LowRankDiagonal(_Additive):
    """W = left @ right + a diagonal, found by turns; for recurrent weights and residual streams.

    A weight that is not square has a diagonal in each of its square blocks, [h, 4 h] four: the
    longer side is a multiple of the shorter. The diagonal keeps the identity path, which no low
    rank can.

    Attributes:
        rank: of the low-rank part, or left to the plan.
        sweeps: most turns.
        tile: ranks left to the plan are multiples of it.
    """

    rank: int | None = None

    def sizes(self, matrix: Sequence[int]) -> list[tuple[int, ...]]:
        """Ranks."""
        m, n = matrix[-2:]
        if max(m, n) % min(m, n):
            got, todo = f"a {m} x {n} matrix", "Choose another format."
            expected = "a side that is a multiple of the other"
            raise ShapeError(message(got=got, expected=expected, todo=todo))
        return (
            [self.given(matrix)] if self.rank is not None else [(r,) for r in self.ladder(matrix)]
        )

    def fit(self, matrix: Sequence[int], size: tuple[int, ...]) -> tuple[Callable, Callable]:
        """The best diagonals."""
        return parts.diagonal, parts.spread

    def blank(self, matrix: Sequence[int], size: tuple[int, ...], array: Callable) -> Any:
        """Values [p, q, b]."""
        m, n = matrix
        b = min(m, n)
        return Diagonal(array(m // b, n // b, b))


@solve.register
def solve_sparse(
    spec: LowRankSparse,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[Sum, Info]:
    """Low rank and a sparse part by turns; see `lrjax.decompose.residual.alternate`.

    The factors have the weight's dtype, and the residual is that of the cast factors.

    Raises:
      RankError: no rank is given, or one that is out of range.
      ShapeError: the groups do not divide the rows.
    """
    matrix, metric = w.shape[-2:], metric or Metric()
    size = spec.given(matrix)
    low, (part, unit), info = _by_turns(w, metric, spec=spec, size=tuple(size))
    values = _scaled(part.values, unit)
    return together(low, Sparse(values, part.index, spec.grouping(matrix[0])), w, metric, info)


@solve.register
def solve_diagonal(
    spec: LowRankDiagonal,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[Sum, Info]:
    """Low rank and a diagonal by turns, each turn optimal: the loss never rises.

    The factors have the weight's dtype, and the residual is that of the cast factors.

    Raises:
      RankError: no rank is given, or one that is out of range.
      ShapeError: no side is a multiple of the other.
    """
    matrix, metric = w.shape[-2:], metric or Metric()
    (size,) = spec.sizes(matrix) if spec.rank is not None else (spec.given(matrix),)
    low, (part, unit), info = _by_turns(w, metric, spec=spec, size=tuple(size))
    return together(low, Diagonal(_scaled(part, unit)), w, metric, info)


@functools.partial(jax.jit, static_argnames=("spec", "size"))
def _by_turns(w: Array, metric: Metric, *, spec: Any, size: tuple[int, ...]) -> Any:
    """`alternate`, compiled once a shape and spec."""
    fit, dense = spec.fit(w.shape[-2:], size)
    return alternate(w, size[0], fit, dense, metric=metric, sweeps=spec.sweeps)


def _scaled(values: Float[Array, "*S a b c"], unit: Float[Array, "*S"]) -> Array:
    """Values in the weight's unit; zero where it was not finite."""
    unit = unit[..., None, None, None]
    return jnp.where(unit > 0, values, 0) * unit
