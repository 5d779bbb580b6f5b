"""Which metrics are element-wise weights."""

import jax.numpy as jnp
from jaxtyping import Array

from lrjax.metrics import Diagonal, Elements, Metric


def as_weights(metric: Metric | None, w: Array) -> Array | None:
    """Element weights of a metric; None where it mixes rows or columns."""
    match metric:
        case Elements(weights=weights):
            return weights
        case None | Metric(rows=None | Diagonal(), cols=None | Diagonal()):
            ones = jnp.ones(w.shape)
            for side, axis in ((metric and metric.rows, -1), (metric and metric.cols, -2)):
                if side:
                    ones = ones * jnp.expand_dims(side.values, axis)
            return ones
    return None
