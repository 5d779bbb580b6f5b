"""Where non-negative factorisations start: from the SVD, without locking zeros."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.policy import EIGH_SIZE
from lrjax.linalg.randomized import Randomized
from lrjax.linalg.truncated import truncated_svd

FILL = 0.1
"""What fills zeros where iterations are dear, in the entries of constant factors whose product has
the mean of X. Filled with that mean itself the product is twenty times X at rank 64, and the first
iterations go into shrinking it."""


def nndsvda(
    x: Float[Array, "m n"], rank: int, key: Array, *, near: bool = False
) -> tuple[Float[Array, "r m"], Float[Array, "r n"]]:
    """Non-negative factors [r, m], [r, n]: the dominant sign part of every singular pair.

    Zeros are filled with the mean of X, lest they stay (Boutsidis and Gallopoulos, 2008); `near`
    fills them with less, see `FILL`: a quicker start, and parts that overlap more in the end (80 x
    60, r = 8, penalised: 14 % zeros, above 30 % from the mean). Of a large matrix a sketch is
    enough to start from.
    """
    sketch = Randomized(oversample=8, passes=0) if min(x.shape) > EIGH_SIZE else None
    svd, _ = truncated_svd(x, rank, key=key, method=sketch)
    u, v = svd.u.T, svd.vt
    positive = jnp.maximum(u, 0), jnp.maximum(v, 0)
    negative = jnp.maximum(-u, 0), jnp.maximum(-v, 0)
    norm = lambda a: jnp.linalg.norm(a, axis=1, keepdims=True)
    sizes = [norm(a) * norm(b) for a, b in (positive, negative)]
    use = sizes[0] >= sizes[1]
    first, second = (jnp.where(use, p, q) for p, q in zip(positive, negative, strict=True))
    scale = jnp.sqrt(svd.s[:, None] * jnp.maximum(*sizes))
    unit = lambda a: a / jnp.maximum(norm(a), jnp.finfo(a.dtype).tiny)
    mean = jnp.maximum(jnp.mean(x), 0)
    fill = FILL * jnp.sqrt(mean / rank) if near else mean
    filled = lambda a: jnp.where(a > 0, a, fill)
    return filled(scale * unit(first)), filled(scale * unit(second))


def semi_start(x: Float[Array, "m n"], rank: int, key: Array) -> Float[Array, "r n"]:
    """A non-negative factor [r, n] whose rows span the leading r - 1 right singular vectors.

    The vectors are shifted by constants until they are non-negative, and the constant is the
    last row: so a semi-NMF of rank r starts with the error of the SVD of rank r - 1
    (Gillis and Kumar, arXiv:1410.7220).
    """
    ones = jnp.ones((1, x.shape[1]), x.dtype)
    if rank == 1:
        return ones
    vt = truncated_svd(x, rank - 1, key=key)[0].vt
    return jnp.concatenate([vt - jnp.min(vt, axis=1, keepdims=True), ones])
