"""Calibrated spectra: the loss of every rank of every weight, one batched solve for each shape."""

import jax
import numpy as np

from lrjax.errors import StatsError, message
from lrjax.linalg import weighted_spectrum
from lrjax.metrics import Metric
from lrjax.plan.batching import batches, grouped
from lrjax.plan.binding import Bound, stacked


@jax.jit
def _spectra(w: jax.Array, metric: Metric) -> jax.Array:
    return weighted_spectrum(w, *metric.arrays())


def spectra(bounds: list[Bound]) -> dict[str, np.ndarray]:
    """Path -> singular values [*S, min(m, n)] of the whitened weight: tails of s^2 are losses.

    Raises:
        StatsError: a weight or its statistics are not finite.
    """
    found: dict[str, np.ndarray] = {}
    for group in grouped(bounds, lambda b: b.key):
        for batch, real in batches(group, group[0].bytes):
            values = np.asarray(_spectra(*stacked(batch)), np.float64)
            found |= {b.path: s for b, s in zip(batch[:real], values, strict=False)}
    for path, values in found.items():
        if not np.isfinite(values).all():
            raise StatsError(
                message(
                    path=path,
                    got="a spectrum that is not finite",
                    expected="finite weights and statistics",
                    todo="Look for NaN, infinities or overflow in both.",
                )
            )
    return found
