"""Cases of banded tables: how to make them, and what they mean."""

import jax.numpy as jnp
import numpy as np

from lrjax.formats import Banded, LowRank
from lrjax.formats.banded import digits_of


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape) / max(1, shape[-1]) ** 0.25, jnp.float32)


def low(rng, *stack, m, n, r):
    return LowRank(normal(rng, *stack, m, r), normal(rng, *stack, r, n))


def banded(rng, *stack, sizes=(8, 16), ranks=(5, 2), n=40):
    """Bands of low rank, the rows in a random order."""
    bands = tuple(low(rng, *stack, m=m, n=n, r=r) for m, r in zip(sizes, ranks, strict=True))
    order = np.argsort(rng.random((*stack, sum(sizes))), axis=-1)
    return Banded(bands, digits_of(order, sum(sizes), jnp.float32))


def banded_dense(w, xp):
    """Bands one below the other, then row by row in the order of the index."""
    full = xp.concatenate([band.left @ band.right for band in w.bands], -2)
    return xp.take_along_axis(full, w.index.astype(int), -2)


EDGES = (
    lambda: banded(np.random.default_rng(0), sizes=(1, 7, 3), ranks=(1, 2, 1), n=11),
    lambda: banded(np.random.default_rng(0), sizes=(300, 40), ranks=(2, 1), n=5),
)
