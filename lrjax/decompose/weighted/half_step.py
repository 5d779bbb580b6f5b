"""Half-sweeps of element-weighted least squares: every row a ridge problem of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot


def cg_rows(
    w: Float[Array, "m n"],
    f: Float[Array, "m n"],
    a: Float[Array, "m k"],
    b: Float[Array, "k n"],
    ridge: float | Array,
    steps: int,
) -> Float[Array, "m k"]:
    """A better A for min sum_ij F_ij (W - A B)_ij^2 + ridge |A|^2, by `steps` conjugate gradients.

    Every row has its own normal matrix B diag(F_i) B'; none is formed. One product with all of
    them, (F * (P B)) B', costs two matrix products; the diagonals, F (B * B)', precondition.
    """
    diagonal = dot(f, (b * b).T) + ridge
    inverse = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1), 0)
    normal = lambda p: dot(f * dot(p, b), b.T) + ridge * p
    residual = dot(f * (w - dot(a, b)), b.T) - ridge * a
    return _conjugate(normal, inverse, residual, a, steps, axis=1)


def cg_cols(
    w: Float[Array, "m n"],
    f: Float[Array, "m n"],
    a: Float[Array, "m k"],
    b: Float[Array, "k n"],
    ridge: float | Array,
    steps: int,
) -> Float[Array, "k n"]:
    """A better B, as `cg_rows` without transposing the large matrices."""
    diagonal = dot((a * a).T, f) + ridge
    inverse = jnp.where(diagonal > 0, 1 / jnp.where(diagonal > 0, diagonal, 1), 0)
    normal = lambda p: dot(a.T, f * dot(a, p)) + ridge * p
    residual = dot(a.T, f * (w - dot(a, b))) - ridge * b
    return _conjugate(normal, inverse, residual, b, steps, axis=0)


def exact_rows(
    w: Float[Array, "m n"],
    f: Float[Array, "m n"],
    a: Float[Array, "m k"],
    b: Float[Array, "k n"],
    ridge: float | Array,
    chunk: int,
) -> Float[Array, "m k"]:
    """The best A: (B diag(F_i) B' + ridge I) a_i = B (F_i * w_i) for every row i, by Cholesky.

    Solved for the change from A, with the residual of A in the data: an error of the factorisation
    is one of the change alone, so float32 comes to its own precision as sweeps settle. Normal
    matrices are sums over `chunk` columns of one product with the k^2 row products of B, for
    `chunk` rows at a time: memory is a few times chunk k^2 numbers. A row without weight stays.
    """
    m, n = w.shape
    k = b.shape[0]
    eye = jnp.eye(k, dtype=w.dtype)
    blocks, widths = -(-m // chunk), -(-n // chunk)
    wide = jnp.pad(b, ((0, 0), (0, widths * chunk - n))).reshape(k, widths, chunk)
    wide = wide.transpose(1, 0, 2)

    def add(gram: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        f, b = part
        pairs = (b[:, None, :] * b[None, :, :]).reshape(k * k, -1)
        return gram + dot(f, pairs.T), None

    def solve(rows: tuple[Array, Array, Array]) -> Array:
        w, f, a = rows
        right = dot(f * (w - dot(a, b)), b.T) - ridge * a
        parts = jnp.pad(f, ((0, 0), (0, widths * chunk - n))).reshape(chunk, widths, chunk)
        zero = jnp.zeros((chunk, k * k), w.dtype)
        gram, _ = jax.lax.scan(add, zero, (parts.transpose(1, 0, 2), wide))
        gram = gram.reshape(chunk, k, k)
        level = ridge + FLOOR * jnp.trace(gram, axis1=1, axis2=2) / k
        level = jnp.where(level > 0, level, 1)
        factor = jax.scipy.linalg.cho_factor(gram + level[:, None, None] * eye, lower=True)
        return a + jax.scipy.linalg.cho_solve(factor, right[..., None])[..., 0]

    fill = lambda x: jnp.pad(x, ((0, blocks * chunk - m), (0, 0))).reshape(blocks, chunk, -1)
    return jax.lax.map(solve, (fill(w), fill(f), fill(a))).reshape(blocks * chunk, k)[:m]


FLOOR = 1e-7
"""Relative ridge on the change, which keeps a rank-deficient row's factorisation finite."""


def _conjugate(normal, inverse, residual, x, steps: int, axis: int) -> Array:
    """Preconditioned conjugate gradients on independent problems along the other axis."""
    inner = lambda p, q: jnp.sum(p * q, axis=axis, keepdims=True)
    ratio = lambda p, q: jnp.where(q > 0, p / jnp.where(q > 0, q, 1), 0)
    direction = inverse * residual
    size = inner(residual, direction)
    for step in range(steps):
        image = normal(direction)
        length = ratio(size, inner(direction, image))
        x = x + length * direction
        if step + 1 < steps:
            residual = residual - length * image
            better = inverse * residual
            size, old = inner(residual, better), size
            direction = better + ratio(size, old) * direction
    return x
