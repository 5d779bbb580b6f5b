"""Alternating least squares for Kronecker sums under a metric of rows and columns."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.driver import Progress, iterate
from lrjax.linalg.stack import dot
from lrjax.linalg.whitening import ridge_solver

INNER = 4
"""Conjugate-gradient steps of a half-sweep where the columns have a metric."""

RIDGE = 1e-5
"""Relative ridge on every step, not on the solution: it damps what a singular Gram leaves free."""


def refit(
    w: Float[Array, "m n"],
    a: Float[Array, "s i j"],
    b: Float[Array, "s k l"],
    rows: Array | None,
    cols: Array | None,
    *,
    sweeps: int | Array = 10,
    tol: float | Array = 1e-3,
) -> tuple[Float[Array, "s i j"], Float[Array, "s k l"], Progress]:
    """Lower tr(D' rows D cols), D = W - sum a (x) b, from given factors; it never rises.

    For a fixed b the problem in a is quadratic. Without a metric of the columns it falls apart
    into the j of a, with one normal matrix of order s i (s x s blocks where rows is diagonal),
    and is solved exactly. With one, the same matrix preconditions conjugate gradients on the
    whole operator.
    """
    (_, i, j), (_, k, l) = a.shape, b.shape
    of = functools.partial(loss, w, rows=rows, cols=cols)
    cube, rows, cols = w.reshape(i, k, j, l), _split(rows, i, k), _split(cols, j, l)
    seen = _weigh(cube, rows, None)
    # Exchanging the parts of every index turns a half-sweep for b into one for a.
    swap = lambda x: x.transpose(1, 0, 3, 2)

    def step(factors, _):
        a, b = factors
        a = _half(cube, seen, a, b, rows, cols)
        b = _half(swap(cube), swap(seen), b, a, _exchange(rows), _exchange(cols))
        return (a, b), of(a, b)

    (a, b), progress = iterate(step, (a, b), of(a, b), steps=sweeps, tol=tol)
    return a, b, progress


def loss(
    w: Float[Array, "m n"],
    a: Float[Array, "s i j"],
    b: Float[Array, "s k l"],
    rows: Array | None,
    cols: Array | None,
) -> Float[Array, ""]:
    """tr(D' rows D cols) of D = W - sum a (x) b, from the difference itself."""
    (_, i, j), (_, k, l) = a.shape, b.shape
    delta = w.reshape(i, k, j, l) - jnp.einsum("sij,skl->ikjl", a, b, precision="highest")
    return jnp.sum(_weigh(delta, _split(rows, i, k), _split(cols, j, l)) * delta)


def _half(
    cube: Array, seen: Array, a: Array, b: Array, rows: Array | None, cols: Array | None
) -> Array:
    """A better a [s, i, j] for a fixed b; `cube` is W [i, k, j, l] and `seen` rows W."""
    if cols is None:
        normal = _normal(b, rows)
        solve = _inverse(normal)
        right = jnp.einsum("ikjl,skl->sij", seen, b, precision="highest")
        return a + solve(right - _apply_normal(normal, a))
    solve = _inverse(_normal(b, rows))
    adjoint = lambda x: jnp.einsum("ikjl,skl->sij", x, b, precision="highest")
    form = lambda a: jnp.einsum("sij,skl->ikjl", a, b, precision="highest")
    residual = adjoint(_weigh(cube - form(a), rows, cols))
    direction = solve(residual)

    def step(_, carry):
        a, residual, direction, size = carry
        image = adjoint(_weigh(form(direction), rows, cols))
        curvature = jnp.sum(direction * image)
        length = jnp.where(curvature > 0, size / jnp.where(curvature > 0, curvature, 1), 0)
        a, residual = a + length * direction, residual - length * image
        better = solve(residual)
        new = jnp.sum(residual * better)
        ratio = jnp.where(size > 0, new / jnp.where(size > 0, size, 1), 0)
        return a, residual, better + ratio * direction, new

    carry = (a, residual, direction, jnp.sum(residual * direction))
    return jax.lax.fori_loop(0, INNER, step, carry)[0]


def _normal(b: Array, rows: Array | None) -> Array:
    """The normal matrix: [s, s] without a row metric, [i, s, s] for a diagonal, else [si, si]."""
    if rows is None:
        return jnp.einsum("skl,tkl->st", b, b, precision="highest")
    if rows.ndim == 2:
        inner = jnp.einsum("skl,tkl->kst", b, b, precision="highest")
        return jnp.einsum("ik,kst->ist", rows, inner, precision="highest")
    inner = jnp.einsum("skl,tql->kqst", b, b, precision="highest")
    full = jnp.einsum("ikpq,kqst->sitp", rows, inner, precision="highest")
    return full.reshape(b.shape[0] * rows.shape[0], -1)


def _apply_normal(normal: Array, a: Array) -> Array:
    """The normal matrix times a [s, i, j]."""
    s, i, j = a.shape
    if normal.ndim == 3:
        return dot(normal, a.transpose(1, 0, 2)).transpose(1, 0, 2)
    if normal.shape[0] == s:
        return dot(normal, a.reshape(s, i * j)).reshape(s, i, j)
    return dot(normal, a.reshape(s * i, j)).reshape(s, i, j)


def _inverse(normal: Array) -> Callable[[Array], Array]:
    """normal^-1 x of x [s, i, j]; the matrix is factored once."""
    solve = ridge_solver(normal, RIDGE)

    def apply(x: Array) -> Array:
        if normal.ndim == 3:
            return solve(x.transpose(1, 0, 2)).transpose(1, 0, 2)
        return solve(x.reshape(len(normal), -1)).reshape(x.shape)

    return apply


def _weigh(delta: Array, rows: Array | None, cols: Array | None) -> Array:
    """The product rows D cols for D [i, k, j, l] and sides over split indices."""
    i, k, j, l = delta.shape
    if rows is not None and rows.ndim == 2:
        delta = rows[:, :, None, None] * delta
    elif rows is not None:
        delta = dot(rows.reshape(i * k, i * k), delta.reshape(i * k, -1)).reshape(delta.shape)
    if cols is not None and cols.ndim == 2:
        delta = delta * cols
    elif cols is not None:
        delta = dot(delta.reshape(-1, j * l), cols.reshape(j * l, j * l)).reshape(delta.shape)
    return delta


def _split(side: Array | None, first: int, second: int) -> Array | None:
    """A side over a merged index, [d, d] or [d], over the split one."""
    return None if side is None else side.reshape((first, second) * side.ndim)


def _exchange(side: Array | None) -> Array | None:
    """A split side with the parts of its index exchanged."""
    if side is None:
        return None
    return side.transpose((1, 0, 3, 2) if side.ndim == 4 else (1, 0))
