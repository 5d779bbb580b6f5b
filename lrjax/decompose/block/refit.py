"""Alternating least squares for any multilinear format under a metric, by preconditioned steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.block.cells import weigh
from lrjax.linalg.driver import Progress, iterate

INNER = 3
"""Conjugate-gradient steps of a half-sweep where the preconditioner is not the inverse."""

Factors = tuple[Array, ...]


def refit(
    w: Float[Array, "m n"],
    factors: Factors,
    form: Callable[[Factors], Array],
    precondition: Callable[[Factors, int, Array], Array],
    rows: Array | None,
    cols: Array | None,
    *,
    sweeps: int | Array,
    tol: float | Array,
    exact: bool,
) -> tuple[Factors, Progress]:
    """Lower tr(D' rows D cols), D = W - form(factors), one factor after the other; it never rises.

    For one factor alone the problem is quadratic: conjugate gradients on its exact normal
    operator, preconditioned by a closed-form solve of a simpler one.

    Directions that singular sides do not see hold what rounding puts there, and the preconditioner
    multiplies it sweep after sweep: blocks of a 48 x 64 matrix under Grams of rank 3 had entries of
    1300, now of 3. So every direction weighs as much as a loss is uncertain by in this precision.

    Args:
      w: the matrix.
      factors: a start.
      form: the matrix [m, n] of factors; affine in each.
      precondition: `precondition(factors, k, gradient)`: the solution of normal equations for
        factor k.
      rows: second moment of the inputs, [m, m], [m] or None.
      cols: of the output gradients, likewise.
      sweeps: most sweeps over all factors.
      tol: relative decrease of the loss in a sweep that ends them.
      exact: whether those normal equations are the problem's own, so that one step solves it.
    """
    level = _size(rows) * _size(cols) * jnp.finfo(w.dtype).eps
    seen = lambda x: weigh(x, rows, cols) + level * x

    def of(fs: Factors) -> Array:
        delta = w - form(fs)
        return jnp.sum(seen(delta) * delta)

    def half(fs: Factors, k: int) -> Factors:
        along = lambda f: form((*fs[:k], f, *fs[k + 1 :]))
        value, push = jax.linearize(along, fs[k])
        back = jax.linear_transpose(push, fs[k])
        gradient = back(seen(w - value))[0]
        direction = precondition(fs, k, gradient)
        carry = (jnp.zeros_like(fs[k]), gradient, direction, jnp.sum(gradient * direction))

        def step(_: Any, carry: Any):
            x, residual, direction, size = carry
            image = back(seen(push(direction)))[0]
            curvature = jnp.sum(direction * image)
            length = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1), 0)
            x, residual = x + length * direction, residual - length * image
            better = precondition(fs, k, residual)
            new = jnp.sum(residual * better)
            ratio = jnp.where(size > 0, new / jnp.where(size > 0, size, 1), 0)
            return x, residual, better + ratio * direction, new

        change = jax.lax.fori_loop(0, 1 if exact else INNER, step, carry)[0]
        return (*fs[:k], fs[k] + change, *fs[k + 1 :])

    def sweep(fs: Factors, _: Any):
        for k in range(len(factors)):
            fs = half(fs, k)
        return fs, of(fs)

    return iterate(sweep, factors, of(factors), steps=sweeps, tol=tol)


def _size(side: Array | None) -> Array | float:
    """At least the largest eigenvalue of a side."""
    return 1.0 if side is None else jnp.linalg.norm(side)
