"""Low rank plus another part, by turns: each the best there is for what the other leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.svd import balanced
from lrjax.formats import LowRank, Sum
from lrjax.linalg import Info, Status, weighted_svd
from lrjax.linalg.driver import iterate
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import to_unit
from lrjax.metrics import Metric

Fit = Callable[[Array, Array | None, Array | None, Any], Any]
"""`fit(rest [m, n], rows, cols, part) -> part`: the part that is best for a rest, and the last."""


def alternate(
    w: Float[Array, "*S m n"],
    rank: int,
    fit: Fit,
    dense: Callable[[Any], Array],
    *,
    metric: Metric | None = None,
    sweeps: int | Array = 20,
    tol: float | Array = 1e-4,
) -> tuple[Any, Any, Info]:
    """Factors and a part near W: min tr(D' rows D cols), D = W - left right - part.

    In turn: the truncated SVD of W - part under the metric, which is optimal, and the part of what
    is left (GoDec: Zhou and Tao, 2011, with a metric); the better of both beginnings. Where the
    part's fit is optimal too the loss never rises; else the best of all turns comes back.

    Args:
      w: matrices W.
      rank: of the low-rank part.
      fit: fits the other part.
      dense: the matrix [m, n] that it stands for; linear in its floating leaves.
      metric: what error means.
      sweeps: most turns.
      tol: relative decrease of the loss that ends them.

    Returns:
      `LowRank`, the part with the stack axes in front, and Info.
    """
    metric = (metric or Metric()).broadcast(w.shape[:-2])
    arrays = [working(w), *(None if x is None else working(x) for x in metric.arrays())]

    def single(w: Array, rows: Array | None, cols: Array | None) -> Any:
        w, unit, finite = to_unit(w)
        for side in (rows, cols):
            finite &= jnp.all(jnp.isfinite(side)) if side is not None else True

        def turn(part: Any) -> tuple[Any, Array]:
            rest = w if part is None else w - dense(part)
            left, right, _, _ = weighted_svd(rest, rank, rows=rows, cols=cols)
            left, right = balanced(left, right)
            rest = w - dot(left, right)
            part = fit(rest, rows, cols, part)
            return (left, right, part), loss(rest - dense(part), rows, cols)

        # Either may take for its own what is the other's, so both get to be first.
        starts = turn(None), turn(fit(w, rows, cols, None))
        better = starts[1][1] < starts[0][1]
        first, value = jax.tree.map(lambda a, b: jnp.where(better, b, a), *starts)
        state, progress = iterate(lambda s, _: turn(s[2]), first, value, steps=sweeps, tol=tol)
        left, right, part = state
        status = jnp.where(progress.converged | (sweeps == 0), 0, int(Status.MAX_ITERATIONS))
        status = jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32)
        missed = jnp.sqrt(jnp.maximum(progress.objective, 0)) / unit
        info = Info(jnp.where(finite, missed, jnp.nan), progress.steps, status)
        clean = lambda x: jnp.where(finite, x, 0)
        return clean(left / unit), clean(right), part, unit, finite, info

    left, right, part, unit, finite, info = over_stack(single, arrays, core=2)
    return LowRank(left, right), (part, jnp.where(finite, 1 / unit, 0)), info


def together(low: LowRank, part: Any, w: Array, metric: Metric, info: Info) -> tuple[Sum, Info]:
    """The sum in the weight's dtype, and the residual of what is stored."""
    found = Sum((low, part)).astype(w.dtype)
    missed = metric.broadcast(w.shape[:-2]).norm(working(w) - working(found.densify()))
    residual = jnp.where(info.status == int(Status.NON_FINITE), jnp.nan, missed)
    return found, dataclasses.replace(info, residual=residual)


def loss(delta: Array, rows: Array | None, cols: Array | None) -> Array:
    """tr(D' rows D cols)."""
    return jnp.sum(weigh(delta, rows, cols) * delta)


def weigh(x: Array, rows: Array | None, cols: Array | None) -> Array:
    """The matrix rows X cols."""
    if rows is not None:
        x = rows[:, None] * x if rows.ndim == 1 else dot(rows, x)
    if cols is not None:
        x = x * cols if cols.ndim == 1 else dot(x, cols)
    return x


def diagonals(w: Array, rows: Array | None, cols: Array | None) -> Array:
    """The metric's weight of each single entry, [m, n]."""
    weights = jnp.ones(w.shape, w.dtype)
    for side, axis in ((rows, 1), (cols, 0)):
        if side is not None:
            side = side if side.ndim == 1 else jnp.diagonal(side)
            weights = weights * jnp.expand_dims(side, axis)
    return weights
