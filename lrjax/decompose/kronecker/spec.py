"""The Kronecker spec: which factor shape, how many terms, and the options that are compared."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax.decompose.kronecker.fit import kronecker
from lrjax.decompose.kronecker.nearest import factor_sizes
from lrjax.decompose.kronecker.shapes import candidates, spectra
from lrjax.decompose.spec import Options, Spec, solve
from lrjax.errors import RankError, message
from lrjax.formats.kronecker import Kronecker as KroneckerWeight
from lrjax.formats.layout import Layout
from lrjax.linalg.info import Info
from lrjax.linalg.policy import Accuracy
from lrjax.linalg.stack import working
from lrjax.metrics import Metric


@dataclasses.dataclass(frozen=True, repr=False)
class Kronecker(Spec):
    """W = a sum of Kronecker products a [i, j] (x) b [m / i, n / j]; also for embeddings.

    Attributes:
        rank: the number of terms, or left to the plan.
        shape: (i, j), the shape of `a`, or left to the plan, which compares a few.
        sweeps: most sweeps of least squares under a metric, after the closed form.
        accuracy: of the SVD behind the closed form.
    """

    rank: int | None = None
    shape: tuple[int, int] | None = None
    sweeps: int = dataclasses.field(default=10, kw_only=True)
    accuracy: Accuracy = dataclasses.field(default=Accuracy.DEFAULT, kw_only=True)

    def measure(self, w: Array, metric: Metric) -> Array:
        """Singular values of the rearranged weight for each candidate shape, [*S, c, k].

        The metric is whitened as a Kronecker product; where it is none the values are scaled so
        that dropping the weight costs what it does.
        """
        rows, cols = metric.broadcast(w.shape[:-2]).arrays()
        shapes = self._shapes(w.shape[-2:])
        if not shapes:
            return jnp.zeros((*w.shape[:-2], 0, 0))
        values = spectra(working(w), shapes, rows, cols)
        own = jnp.sum(values**2, axis=-1, keepdims=True)
        total = metric.loss(w)[..., None, None]
        return values * jnp.sqrt(jnp.where(own > 0, total / jnp.where(own > 0, own, 1), 0))

    def options(
        self, shape: Sequence[int], dtype: Any, layout: Layout, spectrum: np.ndarray
    ) -> Options:
        """(terms, i, j) for every candidate shape and number of terms below break-even."""
        *stack, m, n = layout.matrix_shape(shape)
        count = math.prod(stack)
        energy = np.asarray(spectrum, np.float64).reshape(count, *np.shape(spectrum)[-2:]) ** 2
        rows: list[tuple] = []
        for (i, j), squares in zip(self._shapes((m, n)), energy.sum(0), strict=True):
            k, l = m // i, n // j
            price = i * j + k * l
            most = min(i * j, k * l, (m * n - 1) // price)
            chosen = range(1, most + 1) if self.rank is None else [self.rank]
            tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
            # A row is a matrix [i, k]: one factor is applied, then the other.
            steps = min(i * j * k + j * k * l, i * k * l + i * j * l)
            for s in chosen:
                factor_sizes((m, n), s, (i, j))
                rows.append(((s, i, j), s * price, 2 * s * steps, tails[s]))
        if not rows:
            return Options(np.zeros((0, 3), int), *(np.zeros(0) for _ in range(3)))  # pyright: ignore
        ranks, params, flops, error = zip(*rows, strict=True)
        params, flops = count * np.array(params), count * np.array(flops)
        return Options(np.array(ranks), params, flops, np.array(error))

    def with_rank(self, rank: Any) -> Self:
        """The spec with these (terms, i, j)."""
        terms, *shape = np.atleast_1d(rank).tolist()
        return dataclasses.replace(self, rank=terms, shape=tuple(shape) or self.shape)

    def is_aligned(self, rank: Any, tile: int) -> bool:
        """The number of terms is the rank; the factors' shapes divide the weight's as they can."""
        return int(np.atleast_1d(rank)[0]) % tile == 0

    def unfoldings(self, w: np.ndarray) -> Sequence[np.ndarray]:
        """The rearranged weight [*S, i j, k l] for each candidate shape."""
        *stack, m, n = w.shape
        grids = [w.reshape(*stack, i, m // i, j, n // j) for i, j in self._shapes((m, n))]
        moved = [np.moveaxis(x, -2, -3) for x in grids]
        return [x.reshape(*stack, x.shape[-4] * x.shape[-3], -1) for x in moved]

    def with_unfolding_ranks(self, ranks: Sequence[int], shape: Sequence[int]) -> Self:
        """The shape that carries its own rank with the fewest parameters.

        Raises:
          RankError: the weight has no candidate shapes.
        """
        m, n = shape[-2:]
        shapes = self._shapes((m, n))
        if not shapes:
            todo = "Choose another format."
            got = f"a {m} x {n} matrix"
            raise RankError(message(got=got, expected="sizes with divisors", todo=todo))
        price = lambda c: c[0] * (c[1][0] * c[1][1] + (m // c[1][0]) * (n // c[1][1]))
        terms, (i, j) = min(zip(ranks, shapes, strict=True), key=price)
        return self.with_rank((terms, i, j))

    def _shapes(self, matrix: Sequence[int]) -> tuple[tuple[int, int], ...]:
        m, n = matrix
        if self.shape is None:
            return candidates(m, n)
        factor_sizes((m, n), 1, self.shape)
        return (self.shape,)

    @classmethod
    def field_from_json(cls, name: str, value: Any) -> Any:
        """Accuracies by name."""
        return Accuracy[value] if name == "accuracy" else super().field_from_json(name, value)


@solve.register
def solve_kronecker(
    spec: Kronecker,
    w: Float[Array, "*S m n"],
    *,
    metric: Metric | None = None,
    key: Array | None = None,
    init: Any = None,
) -> tuple[KroneckerWeight, Info]:
    """The spec's sum of Kronecker products; see `lrjax.decompose.kronecker.kronecker`.

    The factors have the weight's dtype, and the residual is that of the cast factors.

    Raises:
      RankError: terms or shape are not given, or impossible.
      ShapeError: the shape does not divide the weight's.
    """
    if spec.rank is None or spec.shape is None:
        todo = "Plan it, or give both, e.g. Kronecker(8, (64, 32))."
        raise RankError(message(got=repr(spec), expected="terms and a shape", todo=todo))
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    rows, cols = metric.arrays()
    found, info = kronecker(
        w, spec.rank, spec.shape, rows=rows, cols=cols, key=key,
        accuracy=spec.accuracy, sweeps=spec.sweeps,
    )  # fmt: skip
    if w.dtype == working(w).dtype:
        return found, info
    found = found.astype(w.dtype)
    missed = metric.loss(working(w) - working(found.densify()))
    residual = jnp.where(jnp.isnan(info.residual), jnp.nan, jnp.sqrt(missed))
    return found, dataclasses.replace(info, residual=residual)
