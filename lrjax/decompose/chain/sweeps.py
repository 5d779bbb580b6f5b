"""Alternating least squares for trains and rings under any metric, core by core."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.chain.cores import (
    Chain,
    Weight,
    close,
    finish,
    gauged,
    join,
    status,
    to_the_left,
    to_the_right,
    weight,
)
from lrjax.decompose.chain.digits import Digits, interleave, separate
from lrjax.decompose.chain.local import improve
from lrjax.linalg import Info
from lrjax.linalg.driver import iterate
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import to_unit, total
from lrjax.metrics import Metric

SWEEPS = 8
"""Most sweeps, each once to the right and once to the left."""

TOL = 1e-3
"""Relative decrease of the loss below which a sweep counts as still."""


class Problem(NamedTuple):
    """min <A(X - Y), X - Y> over chains Y.

    Attributes:
        target: A(X).
        weigh: the metric A; None is the identity.
        means: mean weight of each index, core by core.
    """

    target: Float[Array, "*d"]
    weigh: Callable[[Array], Array] | None
    means: list[Float[Array, " _"]]


def frames(chain: Chain) -> tuple[list[Array], list[Array]]:
    """What is before each core and behind it; the first and the last see the bond that closes."""
    end = jnp.eye(chain[0].shape[0])[:, None]
    left, right = [end] * len(chain), [end] * len(chain)
    for k in range(len(chain) - 1, 0, -1):
        right[k - 1] = join((chain[k], right[k]))
    return left, right


def sweep(chain: Chain, i: Array, problem: Problem) -> Chain:
    """Every core once to the right and, but for the last, once to the left."""
    d, cores, (left, right) = len(chain), list(chain), frames(chain)

    def improved(k: int) -> Array:
        target, weigh, means = problem
        return improve(cores[k], left[k], right[k], target, weigh, means[k])

    for k in range(d):
        cores[k] = improved(k)
        if k < d - 1:
            cores[k], cores[k + 1] = to_the_right(cores[k], cores[k + 1])
            left[k + 1] = join((left[k], cores[k]))
    for k in range(d - 2, -1, -1):
        cores[k], cores[k + 1] = to_the_left(cores[k], cores[k + 1])
        right[k] = join((cores[k + 1], right[k + 1]))
        cores[k] = improved(k)
    return tuple(cores)


def refine(
    w: Float[Array, "*S M N"],
    init: Weight,
    metric: Metric | None,
    *,
    sweeps: int | Array,
    tol: float | Array,
    step: Callable[[Chain, Array, Problem], Chain] = sweep,
) -> tuple[Weight, Info]:
    """The best chain that sweeps from `init` find: the loss never rises.

    Args:
      w: matrices, stack axes leading.
      init: a chain for them.
      metric: what error means; None is the Frobenius norm.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends the run; may be traced.
      step: what sweep number i does to the chain.

    Returns:
      The weight and Info; the residual is the square root of the loss.
    """
    rows, cols = init.modes
    sides = (metric or Metric()).broadcast(w.shape[:-2]).arrays()
    cores, info = _solve(
        lax.stop_gradient(w), *sides, init.cores, tol, sweeps, rows=rows, cols=cols, step=step
    )
    return weight(type(init), cores, w), info


@functools.partial(jax.jit, static_argnames=("rows", "cols", "step"))
def _solve(w, row_side, col_side, start, tol, sweeps, *, rows: Digits, cols: Digits, step):
    def single(w: Array, p: Array | None, q: Array | None, *cores: Array) -> tuple[Any, Info]:
        x, unit, finite = to_unit(interleave(w, rows, cols))
        sides = [s for s in (p, q) if s is not None]
        peaks = [jnp.max(jnp.abs(s)) for s in sides]
        for side in sides:
            finite &= jnp.all(jnp.isfinite(side))
        levels = [jnp.where(finite & (peak > 0), peak, 1) for peak in peaks]
        p, q = _fill(
            (p, q), [jnp.where(finite, s / l, 0) for s, l in zip(sides, levels, strict=True)]
        )
        x = jnp.where(finite, x, 0)
        weigh, means = _metric(w.shape, rows, cols, p, q)
        flat = [c.reshape(c.shape[0], -1, c.shape[-1]) for c in cores]
        chain = gauged((*flat[:-1], jnp.where(finite, flat[-1] * unit, 0)))
        weighed = (lambda x: x) if weigh is None else weigh
        problem = Problem(weighed(x), weigh, means)

        def loss(chain: Chain) -> Array:
            miss = x - close(chain).reshape(x.shape)
            return total(miss * weighed(miss))

        once = lambda chain, i: (moved := step(chain, i, problem), loss(moved))
        floor = 1e-13 * total(x * problem.target)
        chain, progress = iterate(once, chain, loss(chain), steps=sweeps, tol=tol, goal=floor)
        scale = functools.reduce(jnp.multiply, map(jnp.sqrt, levels), 1 / unit)
        residual = jnp.sqrt(jnp.maximum(progress.objective, 0)) * scale
        settled = progress.converged | (sweeps == 0) | (tol <= 0)
        code = status(finite, jnp.zeros((), bool), settled)
        info = Info(jnp.where(finite, residual, jnp.nan), progress.steps, code)
        return finish(chain, unit, finite, rows, cols), info

    arrays = [working(w), *(None if s is None else working(s) for s in (row_side, col_side))]
    return over_stack(single, [*arrays, *map(working, start)], core=2)


def _fill(pattern: tuple[Array | None, ...], present: list[Array]) -> list[Array | None]:
    rest = iter(present)
    return [None if x is None else next(rest) for x in pattern]


def _metric(shape, rows: Digits, cols: Digits, p: Array | None, q: Array | None) -> Any:
    """X -> A(X) in the order of digit pairs, and the mean weight of each pair, core by core.

    Diagonal sides are one product with broadcast weights; a full side is applied to the matrix.
    """
    m, n = shape
    ones = lambda k: jnp.ones(k, jnp.float32)
    diagonals = [
        ones(k) if s is None else s if s.ndim == 1 else jnp.maximum(jnp.diagonal(s), 0)
        for s, k in ((p, m), (q, n))
    ]
    outer = lambda a, b: interleave(a[:, None] * b[None, :], rows, cols)
    weights = outer(*diagonals)
    others = lambda k: tuple(j for j in range(len(rows)) if j != k)
    means = [jnp.mean(weights, axis=others(k)) for k in range(len(rows))]
    full = [s is not None and s.ndim == 2 for s in (p, q)]
    if p is None and q is None and m * n == math.prod((*rows, *cols)):
        return None, means
    if not any(full):
        return lambda x: x * weights, means

    def weigh(x: Array) -> Array:
        y = separate(x, rows, cols)[:m, :n]
        y = dot(p, y) if full[0] else y * diagonals[0][:, None]  # pyright: ignore
        y = dot(y, q) if full[1] else y * diagonals[1]  # pyright: ignore
        return interleave(y, rows, cols)

    return weigh, means
