"""The door of all solvers: what a weight and its metric must be, whatever the format."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import Array

from lrjax.errors import DtypeError, ShapeError, StatsError, message
from lrjax.linalg.info import Info, Status
from lrjax.linalg.stack import working
from lrjax.metrics import Metric
from lrjax.trees import Weight

Solver = TypeVar("Solver", bound=Callable)


class Door:
    """A function that dispatches on the type of a spec, after a look at the weight and the metric.

    What solvers need not look at again: a floating matrix that is not empty, and a metric of its
    sizes in the precision that solvers work in. Their residual is that of the stored factors under
    the whole metric; where storage rounds, or weights of single entries are solved by separable
    ones, it is taken here.
    """

    def __init__(self, otherwise: Callable):
        functools.update_wrapper(self, otherwise)
        self._solvers = functools.singledispatch(otherwise)

    def register(self, solver: Solver) -> Solver:
        """Register a solver for the spec that its first annotation names."""
        return self._solvers.register(solver)  # pyright: ignore

    def __call__(
        self,
        spec: Any,
        w: Any,
        *,
        metric: Any = None,
        key: Array | None = None,
        init: Any = None,
    ) -> tuple[Any, Any]:
        """Check, solve."""
        w = check_weight(w)
        metric = None if metric is None else check_metric(metric, w.shape)
        found, info = self._solvers(spec, w, metric=metric, key=key, init=init)
        whole = metric or Metric()
        if whole.is_separable and w.dtype == working(w).dtype:
            return found, info
        return found, dataclasses.replace(info, residual=_residual(w, found, whole, info))


def check_weight(w: Any) -> Array:
    """The weight as an array [*S, m, n].

    Raises:
      DtypeError: it is not of a floating type.
      ShapeError: it is factored already, no matrix, or an empty one.
    """
    if isinstance(w, Weight):
        got, todo = (
            f"a factored weight ({type(w).__name__})",
            "Densify it first: lrjax.ops.densify.",
        )
        raise ShapeError(message(got=got, expected="a dense array", todo=todo))
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        todo = "Convert it first: w.astype(jnp.float32)."
        raise DtypeError(message(got=f"a weight of {w.dtype}", expected="floating", todo=todo))
    if w.ndim < 2 or 0 in w.shape:
        todo = "Matricize it first: lrjax.formats.layout." if w.size else "Leave it as it is."
        got, expected = f"a weight of shape {w.shape}", "a matrix, or a stack, none empty"
        raise ShapeError(message(got=got, expected=expected, todo=todo))
    return w


def check_metric(metric: Any, shape: tuple[int, ...]) -> Metric:
    """The metric, in the precision that solvers work in.

    Raises:
      StatsError: it is no metric.
      ShapeError: it does not fit matrices of this shape.
    """
    if not isinstance(metric, Metric):
        got, todo = f"a metric of type {type(metric).__name__}", "Bind a kind, or build a Metric."
        raise StatsError(message(got=got, expected="a Metric", todo=todo))
    return metric.fitting(shape)


def _residual(w: Array, found: Any, metric: Metric, info: Info) -> Array:
    missed = metric.norm(working(w) - working(found.densify()))
    return jnp.where(info.status == int(Status.NON_FINITE), jnp.nan, missed)
