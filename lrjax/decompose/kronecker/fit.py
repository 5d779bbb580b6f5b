"""The Kronecker solver: closed form without a metric, least squares from it with one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.kronecker.nearest import factor_sizes, nearest_kronecker, whitened_kronecker
from lrjax.decompose.kronecker.refit import loss, refit
from lrjax.formats.kronecker import Kronecker
from lrjax.linalg.info import Info, Status
from lrjax.linalg.policy import Accuracy
from lrjax.linalg.stack import over_stack, working


def kronecker(
    w: Float[Array, "*S m n"],
    terms: int,
    shape: tuple[int, int],
    *,
    rows: Array | None = None,
    cols: Array | None = None,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
    sweeps: int | Array = 10,
    tol: float | Array = 1e-3,
) -> tuple[Kronecker, Info]:
    """A sum of `terms` Kronecker products near W: min tr(D' rows D cols), D = W - sum a_s (x) b_s.

    Without sides it is the closed form of `nearest_kronecker`. With them the better of that and
    the separable optimum starts alternating least squares, and the loss only falls from there.

    Args:
      w: weights in Flax's [in, out] layout, with stack axes.
      terms: number of products, at most min(i j, k l).
      shape: (i, j), the shape of `a`; `b` is [m / i, n / j].
      rows: second moment of the inputs, [*S, m, m], a diagonal [*S, m], or None.
      cols: second moment of the output gradients, likewise.
      key: randomness of the SVD.
      accuracy: of the SVD.
      sweeps: most sweeps of least squares.
      tol: relative decrease of the loss at which they end.

    Raises:
      ShapeError: `shape` does not divide the weight's.
      RankError: terms below 1 or above min(i j, k l).
    """
    factor_sizes(w.shape[-2:], terms, shape)
    key = jax.random.key(0) if key is None else key
    w = jax.lax.stop_gradient(working(w))
    if rows is None and cols is None:
        return nearest_kronecker(w, terms, shape, key=key, accuracy=accuracy)
    return _solve(w, rows, cols, key, sweeps, tol, terms, shape, accuracy)


@functools.partial(jax.jit, static_argnums=(6, 7, 8))
def _solve(w, rows, cols, key, sweeps, tol, terms, shape, accuracy):
    def single(w: Array, rows: Array | None, cols: Array | None) -> tuple[Kronecker, Info]:
        w, size = _unit(w)
        (rows, row_size), (cols, col_size) = _unit(rows), _unit(cols)
        unit = size * jnp.sqrt(row_size) * jnp.sqrt(col_size)
        solve = {"key": key, "accuracy": accuracy}
        plain, _ = nearest_kronecker(w, terms, shape, **solve)
        white = whitened_kronecker(w, terms, shape, rows, cols, **solve)
        of = lambda f: loss(w, f.a, f.b, rows, cols)
        better = of(white) < of(plain)
        start = jax.tree.map(lambda x, y: jnp.where(better, x, y), white, plain)
        a, b, progress = refit(w, start.a, start.b, rows, cols, sweeps=sweeps, tol=tol)
        ended = jnp.where(progress.converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        finite = jnp.isfinite(unit)
        info = Info(
            residual=jnp.where(
                finite, jnp.sqrt(jnp.maximum(progress.objective, 0)) * unit, jnp.nan
            ),
            iterations=progress.steps,
            status=jnp.where(finite, ended, int(Status.NON_FINITE)).astype(jnp.int32),
        )
        root = jnp.sqrt(jnp.where(finite, size, 0))
        return Kronecker(a * root, b * root), info

    return over_stack(single, [w, rows, cols], core=2)


def _unit(x: Any) -> tuple[Any, Array]:
    """An array in the unit of its largest entry, and the unit; zero where it is not finite."""
    if x is None:
        return None, jnp.ones(())
    peak = jnp.max(jnp.abs(x))
    usable = jnp.isfinite(peak) & (peak > 0)
    scaled = jnp.where(usable, x / jnp.where(usable, peak, 1), 0)
    return scaled, jnp.where(peak == 0, 1, peak)
