"""Calibrated spectra: the loss of every rank of every weight, one batched solve for each shape."""

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.errors import StatsError, message
from lrjax.linalg import weighted_spectrum
from lrjax.metrics import Metric
from lrjax.plan.batching import batches, grouped
from lrjax.plan.binding import Bound, stacked


@jax.jit
def _spectra(w: jax.Array, metric: Metric) -> tuple[jax.Array, jax.Array]:
    """Singular values [G, *S, k], and whether each weight's operands are finite, [G]."""
    leaves = jax.tree.leaves((w, metric))
    finite = [jnp.isfinite(x).all(axis=range(1, x.ndim)) for x in leaves]
    return weighted_spectrum(w, *metric.arrays()), jnp.stack(finite).all(axis=0)


def spectra(bounds: list[Bound]) -> dict[str, np.ndarray]:
    """Path -> singular values [*S, min(m, n)] of the whitened weight: tails of s^2 are losses.

    Raises:
        StatsError: a weight or its statistics are not finite.
    """
    found: dict[str, np.ndarray] = {}
    for group in grouped(bounds, lambda b: b.key):
        for batch, real in batches(group, group[0].bytes):
            values, finite = map(np.asarray, _spectra(*stacked(batch)))
            for i, bound in enumerate(batch[:real]):
                found[bound.path] = _checked(bound.path, values[i].astype(np.float64), finite[i])
    return found


def _checked(path: str, values: np.ndarray, finite: bool) -> np.ndarray:
    if finite and np.isfinite(np.sum(values**2)):
        return values
    raise StatsError(
        message(
            path=path,
            got="a weight or statistics that are not finite",
            expected="finite values",
            todo="Look for NaN, infinities or overflow in both.",
        )
    )
