"""Low rank under element-wise weights: alternating least squares, with or without CG inside."""

import dataclasses
import enum
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.weighted.half_step import cg_cols, cg_rows, exact_rows
from lrjax.decompose.weighted.separable import separable_start
from lrjax.errors import ShapeError, message
from lrjax.formats.low_rank import LowRank
from lrjax.linalg.driver import iterate
from lrjax.linalg.info import Info, Status
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.truncated import check_rank, matrix_shape

CG_STEPS = 3
"""Inner steps of a half-sweep: 2 to 4 take equal work to the same loss, 1 and many take more."""

CHUNK = 256
"""Rows whose normal matrices the exact method holds at once."""


class Inner(enum.Enum):
    """How a half-sweep is solved."""

    CG = "cg"
    EXACT = "exact"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedInfo(Info):
    """Info, with the norm of the gradient relative to the gradient's parts, and the start's loss.

    Attributes:
        gradient: |gradient| over |F * W| times the factors' norms; 0 at a stationary point.
        start: residual of the separable start.
    """

    gradient: Any = None
    start: Any = None


class _Pair(NamedTuple):
    """Factors, those before, the momentum's age, and the least objective."""

    a: Array
    b: Array
    a_old: Array
    b_old: Array
    age: Array
    best: Array


def weighted_low_rank(
    w: Float[Array, "*S m n"],
    weights: Float[Array, "..."],
    rank: int,
    *,
    ridge: float | Array = 0.0,
    inner: Inner = Inner.CG,
    chunk: int = CHUNK,
    init: LowRank | None = None,
    key: Array | None = None,
    sweeps: int | Array = 200,
    tol: float | Array = 1e-5,
) -> tuple[LowRank, WeightedInfo]:
    """W near left @ right where it matters: min sum_ij F_ij (W - L R)_ij^2 + ridge (|L|^2 + |R|^2).

    The problem of TFWSVD (Hua et al., 2022), of weighted low-rank approximation (Srebro and
    Jaakkola, 2003), and, for weights 0 and 1, of matrix completion. It is not convex: the start
    is the closed-form optimum under the separable weights r c' nearest to F. Sweeps are
    extrapolated by Nesterov's rule, and a sweep that rose is dropped with its momentum, so the
    objective never rises. `Inner.CG` needs matrix products only; `Inner.EXACT` solves k x k
    systems, for small ranks and as the reference. `ridge` is in the unit of the mean weight.

    Args:
      w: matrices with stack axes.
      weights: F >= 0, one for each entry; the scale does not matter.
      rank: inner dimension.
      ridge: penalty on both factors.
      inner: how half-sweeps are solved.
      chunk: rows at a time in the exact method: memory is (chunk + max(m, n)) rank^2 numbers.
      init: factors to start from instead.
      key: randomness of the start's SVD; the same key gives the same bits.
      sweeps: most sweeps.
      tol: relative decrease of the objective in a sweep at which it has settled.

    Returns:
      The factors, and the info with the weighted residual |F^.5 * (W - L R)|.

    Raises:
      RankError: rank below 1 or above min(m, n).
      ShapeError: the weights have another shape.
    """
    check_rank(rank, matrix_shape(w))
    if weights.shape != w.shape:
        todo = "Give one weight for every entry."
        got = f"weights of shape {weights.shape}"
        raise ShapeError(message(got=got, expected=f"shape {w.shape}", todo=todo))
    key = jax.random.key(0) if key is None else key
    w, weights = (jax.lax.stop_gradient(working(x)) for x in (w, weights))
    left, right = (None, None) if init is None else (working(init.left), working(init.right))
    return _solve(w, weights, left, right, ridge, key, sweeps, tol, rank, inner, chunk)


@functools.partial(jax.jit, static_argnums=(8, 9, 10))
def _solve(w, weights, left, right, ridge, key, sweeps, tol, rank, inner, chunk):
    def single(w, weights, left, right) -> tuple[LowRank, WeightedInfo]:
        known = weights > 0
        peak = jnp.max(jnp.where(known, jnp.abs(w), 0))
        mean = jnp.mean(weights)
        finite = jnp.isfinite(peak) & jnp.isfinite(mean)
        unit = jnp.where(finite & (peak > 0), peak, 1)
        x = jnp.where(known & finite, w / unit, 0)
        f = jnp.where(finite, weights / jnp.where(mean > 0, mean, 1), 0)
        problem = _Problem(x, f, jnp.asarray(ridge, x.dtype), inner, chunk)
        root = jnp.sqrt(unit)
        a, b = separable_start(x, f, rank, key) if left is None else (left / root, right / root)
        first = problem.objective(a, b)
        pair = _Pair(a, b, a, b, jnp.ones(()), first)
        pair, progress = iterate(problem.sweep, pair, first, steps=sweeps, tol=tol, patience=3)
        size = jnp.where(finite, jnp.sqrt(mean) * unit, jnp.nan)
        ended = jnp.where(progress.converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        info = WeightedInfo(
            residual=jnp.sqrt(problem.loss(pair.a, pair.b)) * size,
            iterations=progress.steps,
            status=jnp.where(finite, ended, int(Status.NON_FINITE)).astype(jnp.int32),
            gradient=problem.gradient(pair.a, pair.b),
            start=jnp.sqrt(problem.loss(a, b)) * size,
        )
        return LowRank(pair.a * root, pair.b * root), info

    return over_stack(single, [w, weights, left, right], core=2)


class _Problem(NamedTuple):
    """One problem: W with a largest entry of one, weights of mean one, ridge, and the method."""

    w: Array
    f: Array
    ridge: Array
    inner: Inner
    chunk: int

    def loss(self, a: Array, b: Array) -> Array:
        """The loss sum F (W - A B)^2, from the difference."""
        return jnp.sum(self.f * (self.w - dot(a, b)) ** 2)

    def objective(self, a: Array, b: Array) -> Array:
        """The loss with its penalty."""
        return self.loss(a, b) + self.ridge * (jnp.sum(a**2) + jnp.sum(b**2))

    def gradient(self, a: Array, b: Array) -> Array:
        """|gradient| over the norm of its data part."""
        weighted = self.f * (self.w - dot(a, b))
        first = dot(weighted, b.T) - self.ridge * a
        second = dot(a.T, weighted) - self.ridge * b
        data = self.f * self.w
        size = jnp.hypot(jnp.linalg.norm(dot(data, b.T)), jnp.linalg.norm(dot(a.T, data)))
        norm = jnp.hypot(jnp.linalg.norm(first), jnp.linalg.norm(second))
        return norm / jnp.where(size > 0, size, 1)

    def sweep(self, p: _Pair, _: Any) -> tuple[_Pair, Array]:
        """Both half-sweeps from the extrapolated factors; dropped if the objective rose."""
        age = (1 + jnp.sqrt(1 + 4 * p.age**2)) / 2
        momentum = (p.age - 1) / age
        a_ahead = p.a + momentum * (p.a - p.a_old)
        b_ahead = p.b + momentum * (p.b - p.b_old)
        if self.inner is Inner.CG:
            a = cg_rows(self.w, self.f, a_ahead, b_ahead, self.ridge, CG_STEPS)
            b = cg_cols(self.w, self.f, a, b_ahead, self.ridge, CG_STEPS)
        else:
            a = exact_rows(self.w, self.f, b_ahead, self.ridge, self.chunk)
            b = exact_rows(self.w.T, self.f.T, a.T, self.ridge, self.chunk).T
        value = self.objective(a, b)
        rose = ~(value <= p.best)
        back = p._replace(a_old=p.a, b_old=p.b, age=jnp.ones_like(p.age))
        on = _Pair(a, b, p.a, p.b, age, value)
        pair = jax.tree.map(lambda x, y: jnp.where(rose, x, y), back, on)
        return pair, pair.best
