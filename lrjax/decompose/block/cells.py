"""A weight as a grid of blocks, and what a metric of the whole says of one block alone.

Block (p, q) of the loss tr(D' A D G) meets A_pp and G_qq with itself, and A_pp', G_qq' with the
other blocks. Leaving those out, a "restricted" metric, makes the blocks independent problems; it
is exact where A and G are block diagonal, diagonals and identities included.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.svd import balanced
from lrjax.errors import ShapeError, message
from lrjax.linalg import truncated_svd, weighted_svd
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import solve_ridge, sqrt_psd

RIDGE = 1e-5
"""Relative ridge of preconditioners: it damps a step, and leaves the solution alone."""

Grid = tuple[int, int]


def check_grid(matrix: tuple[int, ...], grid: Grid, kind: str) -> None:
    """Raise unless the grid cuts the matrix into equal blocks.

    Raises:
      ShapeError: it does not; padding a block is never done, for it would not be free.
    """
    (m, n), (p, q) = matrix[-2:], grid
    if p < 1 or q < 1 or m % p or n % q:
        raise ShapeError(
            message(
                got=f"{kind} with a grid of {p} x {q} blocks for a {m} x {n} matrix",
                expected=f"a number of block rows that divides {m}, and of columns {n}",
                todo="Choose divisors, or leave the grid to the plan.",
            )
        )


def cut(w: Float[Array, "*S pm qn"], grid: Grid) -> Float[Array, "*S p q m n"]:
    """The blocks of a matrix."""
    (*stack, m, n), (p, q) = w.shape, grid
    return w.reshape(*stack, p, m // p, q, n // q).swapaxes(-3, -2)


def join(blocks: Float[Array, "*S p q m n"]) -> Float[Array, "*S pm qn"]:
    """The matrix of a grid of blocks."""
    *stack, p, q, m, n = blocks.shape
    return blocks.swapaxes(-3, -2).reshape(*stack, p * m, q * n)


def restrict(side: Array | None, parts: int) -> Array | None:
    """The diagonal blocks [p, d, d] of a side [p d, p d], or the cut [p, d] of a diagonal one."""
    if side is None:
        return None
    d = side.shape[-1] // parts
    if side.ndim == 1:
        return side.reshape(parts, d)
    grid = side.reshape(parts, d, parts, d)
    return jnp.moveaxis(jnp.diagonal(grid, axis1=0, axis2=2), -1, 0)


def sides_of(rows: Array | None, cols: Array | None, grid: Grid) -> tuple[Any, Any]:
    """What each block of a grid meets of both sides, [p, q, ...]."""
    p, q = grid
    rows, cols = restrict(rows, p), restrict(cols, q)
    if rows is not None:
        rows = jnp.broadcast_to(rows[:, None], (p, q, *rows.shape[1:]))
    if cols is not None:
        cols = jnp.broadcast_to(cols[None], (p, q, *cols.shape[1:]))
    return rows, cols


def is_separable(rows: Array | None, cols: Array | None) -> bool:
    """Whether the restricted metric is the whole one."""
    return all(side is None or side.ndim == 1 for side in (rows, cols))


def weigh(x: Float[Array, "... m n"], rows: Array | None, cols: Array | None) -> Array:
    """The product rows X cols for sides that are full, diagonal (one axis fewer than X) or None."""
    if rows is not None:
        x = rows[..., :, None] * x if rows.ndim == x.ndim - 1 else dot(rows, x)
    if cols is not None:
        x = x * cols[..., None, :] if cols.ndim == x.ndim - 1 else dot(x, cols)
    return x


def root(side: Array | None) -> Array | None:
    """side^.5 of a restricted side."""
    if side is None:
        return None
    return jnp.sqrt(jnp.maximum(side, 0)) if side.ndim == 2 else sqrt_psd(side)


def inverse(side: Array | None) -> Array | None:
    """A damped inverse of a restricted side, for preconditioning."""
    if side is None:
        return None
    if side.ndim == 2:
        level = RIDGE * jnp.mean(side, axis=-1, keepdims=True)
        usable = side + level > 0
        return jnp.where(usable, 1 / jnp.where(usable, side + level, 1), 0)
    eye = jnp.broadcast_to(jnp.eye(side.shape[-1], dtype=side.dtype), side.shape)
    return solve_ridge(side, eye, RIDGE)


def best_of_rank(
    blocks: Float[Array, "*S m n"], rank: int, rows: Array | None, cols: Array | None
) -> tuple[Array, Array, Array]:
    """Balanced factors of every block, optimal under its own sides, and the singular values.

    Wide blocks are solved transposed: there the larger side enters the Gram as it is, and the
    factor that is taken as orthonormal comes from the eigenproblem itself, which keeps blocks of
    less than the asked rank exact.
    """
    swap = lambda x: jnp.swapaxes(x, -1, -2)
    if rows is None and cols is None:
        svd, _ = truncated_svd(blocks, rank)
        return *balanced(svd.u * svd.s[..., None, :], svd.vt), svd.s
    if blocks.shape[-2] >= blocks.shape[-1]:
        left, right, s, _ = weighted_svd(blocks, rank, rows=rows, cols=cols)
        return *balanced(left, right), s
    if cols is None:
        cols = jnp.ones((*blocks.shape[:-2], blocks.shape[-1]), blocks.dtype)
    right, left, s, _ = weighted_svd(swap(blocks), rank, rows=cols, cols=rows)
    return *balanced(swap(left), swap(right)), s
