"""What the block solvers share: units, status, and the residual of what is stored."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrjax.linalg.info import Info, Status
from lrjax.linalg.stack import over_stack, working
from lrjax.metrics import Metric

Single = Callable[..., tuple[Any, Array, Array]]
"""`single(w, rows, cols, *own) -> (factors, iterations, status)` of a matrix, in a sane unit."""


def solved(
    w: Array,
    metric: Metric | None,
    single: Single,
    build: Callable[[Any], Any],
    rescale: Callable[[Any, Array], Any],
    *own: Array,
) -> tuple[Any, Info]:
    """Run a solver on each matrix of a stack, in the unit of its largest entry.

    Args:
      w: matrices [*S, m, n].
      metric: what error means.
      single: solves one of them.
      build: the format from the factors.
      rescale: `rescale(factors, unit)`: the factors of `unit` times the matrix.
      own: further arrays [*S, ...] of which `single` takes each matrix's own.

    Returns:
      The format in the weight's dtype, and Info whose residual is that of the stored factors.
      Where anything is not finite the factors are zero.
    """
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    rows, cols = metric.arrays()
    w = jax.lax.stop_gradient(w)

    def one(w: Array, rows: Array | None, cols: Array | None, *own: Array):
        w, size, fine = _unit(w)
        rows, _, rows_fine = _unit(rows)
        cols, _, cols_fine = _unit(cols)
        fine = fine & rows_fine & cols_fine
        factors, iterations, status = single(jnp.where(fine, w, 0), rows, cols, *own)
        factors = rescale(factors, jnp.where(fine, size, 0))
        status = jnp.where(fine, status, int(Status.NON_FINITE)).astype(jnp.int32)
        return factors, jnp.asarray(iterations, jnp.int32), status

    sides = [None if x is None else working(x) for x in (rows, cols)]
    factors, iterations, status = over_stack(one, [working(w), *sides, *own], core=2)
    found = jax.tree.map(lambda x: x.astype(w.dtype), build(factors))
    return found, Info(residual(w, found, metric, status), iterations, status)


def residual(w: Array, found: Any, metric: Metric, status: Array) -> Array:
    """sqrt(tr(D' rows D cols)) of the stored factors; NaN where the input was not finite."""
    delta = working(w) - working(found.densify())
    peak = jnp.max(jnp.abs(delta), axis=(-2, -1))
    unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
    missed = jnp.sqrt(jnp.maximum(metric.loss(delta / unit[..., None, None]), 0)) * unit
    return jnp.where(status == int(Status.NON_FINITE), jnp.nan, missed)


def ended(progress: Any) -> Array:
    """The status of an iterative run."""
    done, short = int(Status.CONVERGED), int(Status.MAX_ITERATIONS)
    return jnp.where(progress.converged, done, short)


def with_total(values: Array, total: Array, axes: int) -> Array:
    """Values [*S, ...] scaled so that their squares sum to the loss of dropping the weight."""
    last = tuple(range(values.ndim - axes, values.ndim))
    own = jnp.sum(values**2, axis=last, keepdims=True)
    total = total.reshape(*total.shape, *(1,) * (values.ndim - total.ndim))
    return values * jnp.sqrt(jnp.where(own > 0, total / jnp.where(own > 0, own, 1), 0))


def _unit(x: Any) -> tuple[Any, Array, Array]:
    """An array in the unit of its largest entry, the unit, and whether all of it is finite."""
    if x is None:
        return None, jnp.ones(()), jnp.asarray(True)
    fine = jnp.all(jnp.isfinite(x))
    peak = jnp.max(jnp.abs(x))
    usable = fine & (peak > 0)
    peak = jnp.where(usable, peak, 1)
    return jnp.where(fine, x / peak, 0), peak, fine
