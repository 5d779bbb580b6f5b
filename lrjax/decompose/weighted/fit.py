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
from lrjax.linalg.info import Info, Status
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.truncated import check_rank, matrix_shape

CG_STEPS = 3
"""Inner steps of a half-sweep: 2 to 4 take equal work to the same loss, 1 and many take more."""

CHUNK = 256
"""Rows whose normal matrices the exact method holds at once."""

COARSE = 1e-5
"""Relative change of the objective that float32 sums still resolve; a smaller one is judged by the
difference of the products, without which sweeps are dropped at random from a gradient of 1e-4."""


class Inner(enum.Enum):
    """How a half-sweep is solved."""

    CG = "cg"
    EXACT = "exact"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedInfo(Info):
    """Info, with the norm of the gradient relative to the gradient's parts, and the start's loss.

    Attributes:
        gradient: |gradient| over the norm of its data part; 0 at a stationary point.
        start: residual of the separable start.
    """

    gradient: Any = None
    start: Any = None


class _Pair(NamedTuple):
    """Factors, those before, momentum's age, objective, gradient once it settles, and the end."""

    a: Array
    b: Array
    a_old: Array
    b_old: Array
    age: Array
    best: Array
    gradient: Array
    stuck: Array


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
    sweeps: int | Array = 500,
    tol: float | Array = 1e-5,
) -> tuple[LowRank, WeightedInfo]:
    """W near left @ right where it matters: min sum_ij F_ij (W - L R)_ij^2 + ridge (|L|^2 + |R|^2).

    The problem of TFWSVD (Hua et al., 2022), of weighted low-rank approximation (Srebro and
    Jaakkola, 2003), and, for weights 0 and 1, of matrix completion. It is not convex: the start
    is the closed-form optimum under the separable weights r c' nearest to F. Sweeps are
    extrapolated by Nesterov's rule, and a sweep that rose is dropped with its momentum, so the
    objective never rises, not even by less than its own rounding. `Inner.CG` needs matrix products
    only; `Inner.EXACT` solves k x k systems, for small ranks and as the reference. `ridge` is in
    the unit of the mean weight.

    Memory beside the arguments: at most 6 m n + 10 (m + n) rank numbers, and for `Inner.EXACT`
    4 chunk rank^2 more; a stack is solved one matrix at a time on a CPU, as a batch elsewhere.

    Args:
      w: matrices with stack axes.
      weights: F >= 0, one for each entry; the scale does not matter.
      rank: inner dimension.
      ridge: penalty on both factors.
      inner: how half-sweeps are solved.
      chunk: rows at a time in the exact method.
      init: factors to start from instead.
      key: randomness of the start's SVD; the same key gives the same bits.
      sweeps: most sweeps.
      tol: gradient, relative to its data part, at which the factors are stationary.

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
        pair, steps = problem.descend(a, b, sweeps, tol)
        gradient = problem.gradient(pair.a, pair.b)
        size = jnp.where(finite, jnp.sqrt(mean) * unit, jnp.nan)
        ended = (gradient <= tol) | pair.stuck
        status = jnp.where(ended, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        info = WeightedInfo(
            residual=jnp.sqrt(problem.loss(pair.a, pair.b)) * size,
            iterations=steps,
            status=jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32),
            gradient=gradient,
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

    def descend(
        self, a: Array, b: Array, sweeps: int | Array, tol: float | Array
    ) -> tuple[_Pair, Array]:
        """Sweeps until the gradient is at `tol`; the last factors are the best, and their count."""

        def going(carry: tuple[_Pair, Array]) -> Array:
            pair, step = carry
            going = (pair.gradient > tol) & ~pair.stuck
            return (step < sweeps) & going & jnp.isfinite(pair.best)

        def body(carry: tuple[_Pair, Array]) -> tuple[_Pair, Array]:
            pair, step = carry
            return self.sweep(pair), step + 1

        one, far = jnp.ones((), a.dtype), jnp.full((), jnp.inf, a.dtype)
        pair = _Pair(a, b, a, b, one, self.objective(a, b), far, jnp.zeros((), bool))
        return jax.lax.while_loop(going, body, (pair, jnp.zeros((), jnp.int32)))

    def sweep(self, p: _Pair) -> _Pair:
        """Both half-sweeps from the extrapolated factors; dropped if the objective rose."""
        age = (1 + jnp.sqrt(1 + 4 * p.age**2)) / 2
        momentum = (p.age - 1) / age
        a_ahead = p.a + momentum * (p.a - p.a_old)
        b_ahead = p.b + momentum * (p.b - p.b_old)
        if self.inner is Inner.CG:
            a = cg_rows(self.w, self.f, a_ahead, b_ahead, self.ridge, CG_STEPS)
            b = cg_cols(self.w, self.f, a, b_ahead, self.ridge, CG_STEPS)
        else:
            a = exact_rows(self.w, self.f, a_ahead, b_ahead, self.ridge, self.chunk)
            b = exact_rows(self.w.T, self.f.T, b_ahead.T, a.T, self.ridge, self.chunk).T
        value = self.objective(a, b)
        floor = COARSE**2 * jnp.sum(self.f * self.w**2)
        settled = jnp.abs(value - p.best) <= COARSE * p.best + floor

        def near() -> tuple[Array, Array]:
            rose = ~(self.change(p, a, b) <= 0)
            return rose, self.gradient(jnp.where(rose, p.a, a), jnp.where(rose, p.b, b))

        far = jnp.full_like(p.gradient, jnp.inf)
        rose, gradient = jax.lax.cond(settled, near, lambda: (~(value <= p.best), far))
        # A sweep without momentum that rose would be the same for ever.
        stuck = rose & (p.age == 1)
        back = _Pair(p.a, p.b, p.a, p.b, jnp.ones_like(age), p.best, gradient, stuck)
        on = _Pair(a, b, p.a, p.b, age, value, gradient, stuck)
        return jax.tree.map(lambda x, y: jnp.where(rose, x, y), back, on)

    def change(self, p: _Pair, a: Array, b: Array) -> Array:
        """objective(A, B) - objective(p) from the step S = A B - A0 B0, with nothing cancelled."""
        step = dot(a - p.a, b) + dot(p.a, b - p.b)
        both = 2 * (self.w - dot(a, b)) + step
        gained = jnp.sum(self.f * step * both)
        norms = jnp.sum((a - p.a) * (a + p.a)) + jnp.sum((b - p.b) * (b + p.b))
        return self.ridge * norms - gained
