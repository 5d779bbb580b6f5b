"""A metric of a matrix as metrics of the modes that its rows and columns are cut into."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from lrjax.linalg.stack import working
from lrjax.metrics import Gram, Metric


def mode_grams(
    metric: Metric, modes: Sequence[int], cut: int, compressed: Sequence[int]
) -> list[Array | None]:
    """A Gram (or its diagonal, or None) for each compressed mode, and the scale they leave out.

    Rows S over several modes become the Kronecker product of its partial traces: exact where S is
    one, and otherwise the product with S's own marginals. Uncompressed modes weigh evenly. Each
    Gram has mean diagonal one: the unit of the loss is left out.
    """
    grams: list[Array | None] = []
    for side, first, last in ((metric.rows, 0, cut), (metric.cols, cut, len(modes))):
        own = tuple(modes[first:last])
        if side is None:
            grams += [None] * len(own)
            continue
        full = isinstance(side, Gram)
        side = working(side.matrix if full else side.values)
        stack = side.shape[: -2 if full else -1]
        diagonal = jnp.diagonal(side, axis1=-2, axis2=-1) if full else side
        mean = jnp.mean(diagonal, axis=-1)
        unit = jnp.where(mean > 0, 1 / jnp.where(mean > 0, mean, 1), 0)
        for k in range(len(own)):
            if first + k not in compressed:
                grams.append(None)
                continue
            before, after = math.prod(own[:k]), math.prod(own[k + 1 :])
            if full:
                parts = side.reshape(*stack, before, own[k], after, before, own[k], after)
                gram = jnp.einsum("...aibajb->...ij", parts) / (before * after)
                grams.append(gram * unit[..., None, None])
            else:
                parts = side.reshape(*stack, before, own[k], after)
                grams.append(jnp.mean(parts, axis=(-3, -1)) * unit[..., None])
    return grams
