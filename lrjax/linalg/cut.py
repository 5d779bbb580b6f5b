"""One cut of a tensor: the leading left vectors of an unfolding, and what is left to be cut."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.linalg.draw import normal
from lrjax.linalg.orthonormal import fix_signs
from lrjax.linalg.policy import EIGH_SHARE, EIGH_SIZE, Accuracy
from lrjax.linalg.stack import dot
from lrjax.linalg.subspace import leading_vectors, surplus
from lrjax.linalg.truncated import is_rounding, truncated_svd

SURPLUS, LANES = 10, 8
"""Least width of a sketch beyond the rank, and what it is a multiple of: products of 240 x 98304
with 24 and 32 columns take 10 ms, with 26 columns 16 ms. The basis is twice as wide."""

SKETCH_SHARE = 4
"""A sketch reads the unfolding four times at its width, the Gram of the rows once at their number:
240 x 98304 takes 13 to 21 ms for 32 columns, and 99 ms for the Gram."""

PASSES = 8
"""Steps of subspace iteration on a Gram of an order four times its width or more: of order 384 for
rank 16 1 ms in place of 7; nothing follows that would correct a cut."""

CHUNK = 1 << 13
"""Columns of a Gram's summand: it stays in the cache while it is brought to its unit."""


class Cut(NamedTuple):
    """A ~ left @ rest with orthonormal columns left, and whether the rank exceeds A's."""

    left: Float[Array, "m r"]
    rest: Float[Array, "r n"]
    deficient: Array


def cut(
    a: Float[Array, "m n"],
    rank: int,
    unit: Array | float,
    finite: Array,
    key: Array,
    accuracy: Accuracy,
) -> Cut:
    """The truncated SVD of unit * A as left @ rest; A itself is never copied.

    Singular vectors of the long side are not asked for: `rest` is left'A, right to rounding
    whatever the accuracy of left. Where A is not finite the result is rubbish, but no failure.
    """
    m, n = a.shape
    short, width = min(m, n), -(-(rank + SURPLUS) // LANES) * LANES
    fits = 2 * width <= EIGH_SHARE * short
    if accuracy is not Accuracy.DEFAULT or (short > EIGH_SIZE and not fits):
        return _by_svd(a * unit, rank, key, accuracy)
    if fits and (short > EIGH_SIZE or SKETCH_SHARE * width < m <= n):
        return _by_sketch(a, rank, width, unit, finite, key)
    by = _by_rows if m <= n else _by_columns
    return by(a, rank, unit, finite, key)


def _by_rows(a: Array, rank: int, unit: Array | float, finite: Array, key: Array) -> Cut:
    """Eigenvectors of AA', exact above the noise of a Gram, 3e-4 of the largest singular value."""
    m, n = a.shape
    tail = a[:, n - n % CHUNK :] * unit
    gram = dot(tail, tail.T)

    def add(i: Array, gram: Array) -> Array:
        chunk = lax.dynamic_slice(a, (0, i * CHUNK), (m, CHUNK)) * unit
        return gram + dot(chunk, chunk.T)

    if n >= CHUNK:
        gram = lax.fori_loop(0, n // CHUNK, add, gram)
    left = _signed(_leading(gram, rank, finite, key))
    return _with_rest(left, dot(left.T * unit, a))


def _by_columns(a: Array, rank: int, unit: Array | float, finite: Array, key: Array) -> Cut:
    """Eigenvectors V of A'A; A V is made orthonormal, its triangle goes to V'."""
    a = a * unit
    right = _leading(dot(a.T, a), rank, finite, key)
    left, triangle = jnp.linalg.qr(jnp.where(finite, dot(a, right), 0))
    return _with_rest(*_turned(left, dot(triangle, right.T)))


def _by_sketch(
    a: Array, rank: int, width: int, unit: Array | float, finite: Array, key: Array
) -> Cut:
    """Rayleigh-Ritz on [AX, AA'AX], X a product of random vectors: four readings of A.

    The first block belongs to the basis, as in a Krylov space: the same readings as one power
    pass, and a third of its excess. X is a Khatri-Rao product of two random matrices, so that a
    draw costs sqrt(n) numbers a column instead of n (Battaglino, Ballard, Kolda, 2018); it is never
    formed, which would take longer than its product with A.
    """
    n = a.shape[1]
    head = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    pairs = zip(jax.random.split(key), (head, n // head), strict=True)
    first, second = (normal(k, (width, size), a.dtype) for k, size in pairs)
    sketch = dot(a.reshape(-1, n // head), (second * unit).T).reshape(len(a), head, width)
    sketch = jnp.sum(sketch * first.T, axis=1)
    orthonormal = lambda x: jnp.linalg.qr(jnp.where(finite, x, 0))[0]
    basis = orthonormal(sketch)
    images = dot(basis.T * unit, a)
    power = dot(a, (images * unit).T)
    more = orthonormal(jnp.concatenate([basis, power], axis=1))[:, width:]
    further = dot(more.T * unit, a)
    cross = dot(more.T, power)
    ritz = jnp.block([[dot(basis.T, power), cross.T], [cross, dot(further, further.T)]])
    mix = _largest(ritz, rank, finite)
    left = dot(jnp.concatenate([basis, more], axis=1), mix)
    rest = dot(mix[:width].T, images) + dot(mix[width:].T, further)
    return _with_rest(*_turned(left, rest))


def _by_svd(a: Array, rank: int, key: Array, accuracy: Accuracy) -> Cut:
    svd, _ = truncated_svd(a, rank, key=key, accuracy=accuracy)
    return _with_rest(*_turned(svd.u, svd.s[:, None] * svd.vt))


def _leading(gram: Array, rank: int, finite: Array, key: Array) -> Array:
    """Eigenvectors of the `rank` largest eigenvalues of a Gram, falling, as columns."""
    if 4 * (rank + surplus(rank)) > len(gram):
        return _largest(gram, rank, finite)
    return leading_vectors(gram, rank, key, finite=finite, passes=PASSES)


def _largest(gram: Array, rank: int, finite: Array) -> Array:
    """Eigenvectors of the `rank` largest eigenvalues, falling, as columns."""
    vectors = jnp.linalg.eigh(jnp.where(finite, gram, 0), symmetrize_input=False)[1]
    return vectors[:, ::-1][:, :rank]


def _signed(left: Array) -> Array:
    return fix_signs(left.T)[0].T


def _turned(left: Array, rest: Array) -> tuple[Array, Array]:
    turned, rest = fix_signs(left.T, rest)
    return turned.T, rest


def _with_rest(left: Array, rest: Array) -> Cut:
    return Cut(left, rest, is_rounding(jnp.linalg.norm(rest, axis=1)))
