"""Calibrated spectra: the loss of every size of every weight, one batched solve for each shape."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.decompose import SVD, Spec
from lrjax.errors import StatsError, message
from lrjax.metrics import Metric
from lrjax.plan.batching import batches, grouped
from lrjax.plan.binding import Bound, stacked


@partial(jax.jit, static_argnums=0)
def _measure(spec: Spec, w: jax.Array, metric: Metric) -> tuple[Any, jax.Array]:
    """What the spec measures of each weight, and whether each one's operands are finite, [G]."""
    leaves = jax.tree.leaves((w, metric))
    finite = [jnp.isfinite(x).all(axis=range(1, x.ndim)) for x in leaves]
    return spec.measure(w, metric), jnp.stack(finite).all(axis=0)


def measure(spec: Spec, bounds: Sequence[Bound]) -> dict[str, Any]:
    """Path -> what `spec.measure` finds of the weight, on the host.

    Raises:
        StatsError: a weight or its statistics are not finite.
    """
    found: dict[str, Any] = {}
    for group in grouped(bounds, lambda b: b.key):
        for batch, real in batches(group, group[0].bytes):
            measured, finite = jax.tree.map(np.asarray, _measure(spec, *stacked(batch)))
            for i, bound in enumerate(batch[:real]):
                own = jax.tree.map(lambda x: x[i], measured)  # noqa: B023
                found[bound.path] = _checked(bound.path, own, bool(finite[i]))
    return found


def spectra(bounds: Sequence[Bound]) -> dict[str, np.ndarray]:
    """Path -> singular values [*S, min(m, n)] of the whitened weight: tails of s^2 are losses.

    Raises:
        StatsError: a weight or its statistics are not finite.
    """
    found = measure(SVD(), bounds)
    return {path: np.asarray(values, np.float64) for path, values in found.items()}


def _checked(path: str, measured: Any, finite: bool) -> Any:
    if finite and all(np.isfinite(x).all() for x in jax.tree.leaves(measured)):
        return measured
    raise StatsError(
        message(
            path=path,
            got="a weight or statistics that are not finite",
            expected="finite values",
            todo="Look for NaN, infinities or overflow in both.",
        )
    )
