"""The nearest sum of Kronecker products in the Frobenius norm, or in a separable metric."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.kronecker import Kronecker
from lrjax.linalg.info import Info
from lrjax.linalg.krylov import Krylov
from lrjax.linalg.policy import EIGH_SIZE, Accuracy
from lrjax.linalg.separable import separate
from lrjax.linalg.truncated import truncated_svd
from lrjax.linalg.van_loan import rearrange
from lrjax.linalg.whitening import whiten

FEW = 16
"""Terms up to which the time goes into reading R(W): a basis of 2 terms + 8 in blocks of four.
Of 2048 x 1152, terms 1 / 8: excess below 1e-4 in 3 and 6 steps, where the policy takes 8."""


def nearest_kronecker(
    w: Float[Array, "*S m n"],
    terms: int,
    shape: tuple[int, int],
    *,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
) -> tuple[Kronecker, Info]:
    """The best sum of `terms` products a [i, j] (x) b [k, l], i k = m and j l = n.

    min |W - sum_s a_s (x) b_s| is the truncated SVD of the rearranged matrix R(W) [i j, k l],
    because R keeps the Frobenius norm (Van Loan and Pitsianis, 1993). The terms are orthogonal;
    both factors of a term have the same norm.

    Args:
      w: weights in Flax's [in, out] layout, with stack axes.
      terms: number of products, at most min(i j, k l).
      shape: (i, j), the shape of `a`.
      key: randomness of the SVD.
      accuracy: of the SVD.

    Raises:
      ShapeError: `shape` does not divide the weight's.
      RankError: terms below 1 or above min(i j, k l).
    """
    i, j, k, l = factor_sizes(w.shape[-2:], terms, shape)
    method = _narrow((i * j, k * l), terms) if accuracy is Accuracy.DEFAULT else None
    svd, info = truncated_svd(rearrange(w, i, j), terms, key=key, accuracy=accuracy, method=method)
    root = jnp.sqrt(svd.s)[..., None, :]
    stack = w.shape[:-2]
    a = jnp.swapaxes(svd.u * root, -1, -2).reshape(*stack, terms, i, j)
    b = (svd.vt * jnp.swapaxes(root, -1, -2)).reshape(*stack, terms, k, l)
    return Kronecker(a, b), info


def whitened_kronecker(
    w: Float[Array, "*S m n"],
    terms: int,
    shape: tuple[int, int],
    rows: Array | None,
    cols: Array | None,
    *,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
) -> Kronecker:
    """The optimum where both sides of the metric are Kronecker products; a good start elsewhere.

    With rows = A_1 (x) A_2 and cols = G_1 (x) G_2 whitening maps a (x) b to
    A_1^.5 a G_1^.5 (x) A_2^.5 b G_2^.5. Other sides are replaced by such products.
    """
    i, j, k, l = factor_sizes(w.shape[-2:], terms, shape)
    white = whiten_for(w, shape, rows, cols)
    found, _ = nearest_kronecker(white, terms, shape, key=key, accuracy=accuracy)
    (_, undo_i), (_, undo_k) = _roots(rows, w, (i, k))
    (_, undo_j), (_, undo_l) = _roots(cols, w, (j, l))
    a = _along(_along(found.a, undo_i, -2, terms=True), undo_j, -1, terms=True)
    b = _along(_along(found.b, undo_k, -2, terms=True), undo_l, -1, terms=True)
    return Kronecker(a, b)


def whiten_for(
    w: Float[Array, "*S m n"], shape: tuple[int, int], rows: Array | None, cols: Array | None
) -> Float[Array, "*S m n"]:
    """(A_1 (x) A_2)^.5 W (G_1 (x) G_2)^.5, the sides replaced by Kronecker products."""
    (m, n), (i, j) = w.shape[-2:], shape
    cube = w.reshape(*w.shape[:-2], i, m // i, j, n // j)
    axes = ((rows, (i, m // i), (-4, -3)), (cols, (j, n // j), (-2, -1)))
    for side, sizes, places in axes:
        for (root, _), axis in zip(_roots(side, w, sizes), places, strict=True):
            cube = _along(cube, root, axis)
    return cube.reshape(w.shape)


def factor_sizes(
    dense: tuple[int, ...], terms: int, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """i, j, k, l of the factors; raises ShapeError or RankError where they are impossible."""
    (m, n), (i, j) = dense, shape
    if i < 1 or j < 1 or m % i or n % j:
        todo = f"Choose divisors of {m} and {n}, or leave the shape to the search."
        expected = f"a shape that divides {m} x {n}"
        raise ShapeError(message(got=f"factors of shape {shape}", expected=expected, todo=todo))
    k, l = m // i, n // j
    most = min(i * j, k * l)
    if not 1 <= terms <= most:
        got = f"{terms} Kronecker terms of {i}x{j} and {k}x{l}"
        expected = f"1 to {most} terms, which are exact"
        raise RankError(message(got=got, expected=expected, todo="Choose a number in that range."))
    return i, j, k, l


def _narrow(shape: tuple[int, int], terms: int) -> Krylov | None:
    """A small basis for a few terms of a large matrix; None leaves the method to the policy."""
    if min(shape) <= EIGH_SIZE or terms > FEW or jax.default_backend() != "cpu":
        return None
    return Krylov(4, -(-(2 * terms + 8) // 4))


def _roots(side: Array | None, w: Array, sizes: tuple[int, int]) -> list[tuple]:
    """(G^.5, G^-.5) of both parts of a side; None is the identity, vectors are diagonals."""
    if side is None:
        return [(None, None)] * 2
    diagonal = side.ndim == w.ndim - 1
    if not diagonal:
        return [whiten(part) for part in separate(side, sizes, diagonal=False)]
    roots = [jnp.sqrt(jnp.maximum(x, 0)) for x in separate(side, sizes, diagonal=True)]
    return [(x, jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)) for x in roots]


def _along(x: Array, root: Array | None, axis: int, *, terms: bool = False) -> Array:
    """A tensor times a symmetric matrix or diagonal along one axis; `terms`: one axis more."""
    if root is None:
        return x
    stack = x.ndim - (3 if terms else 4)
    if root.ndim == stack + 1:
        fill = (1,) * (x.ndim - stack - 1)
        return x * jnp.moveaxis(root.reshape(*root.shape, *fill), stack, axis)
    moved = jnp.moveaxis(x, axis, -1)
    flat = moved.reshape(*x.shape[:stack], -1, moved.shape[-1])
    flat = jnp.matmul(flat, root, precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(flat.reshape(moved.shape), -1, axis)
