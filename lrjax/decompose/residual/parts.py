"""The best sparse, and the best diagonal, part of a rest under a metric."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.residual.alternate import diagonals, loss, weigh
from lrjax.linalg.whitening import solve_ridge

CG_STEPS = 10
"""Steps of conjugate gradients for the values on a pattern."""


class Entries(NamedTuple):
    """Values and indices [n, g, k] of k entries in every group of a column."""

    values: Float[Array, "n g k"]
    index: Float[Array, "n g k"]


def sparse(
    rest: Float[Array, "m n"],
    rows: Array | None,
    cols: Array | None,
    last: Entries | None,
    *,
    group: int,
    count: int,
) -> Entries:
    """The `count` entries of every group that matter most, with their best values.

    Under diagonal metrics they are the largest weighted entries as they are, which is optimal. A
    full Gram couples entries: the pattern is that of its diagonal, or the last one if that does
    better, and the values solve the least squares on it, by conjugate gradients.
    """
    del last
    importance = diagonals(rest, rows, cols) * rest**2
    order = lax.top_k(_grouped(importance, group), count)[1]
    coupled = any(side is not None and side.ndim == 2 for side in (rows, cols))
    values = jnp.take_along_axis(_grouped(rest, group), order, axis=-1)
    if coupled:
        values = _least_squares(rest, rows, cols, values, order, group)
    return Entries(values, order.astype(rest.dtype))


def scattered(entries: Entries, group: int) -> Float[Array, "m n"]:
    """The matrix of the entries."""
    n, g, _ = entries.values.shape
    zeros = jnp.zeros((n, g, group), entries.values.dtype)
    index = entries.index.astype(jnp.int32)
    full = jnp.put_along_axis(zeros, index, entries.values, axis=-1, inplace=False)
    return full.reshape(n, g * group).T


def _least_squares(rest, rows, cols, values: Array, order: Array, group: int) -> Array:
    """Conjugate gradients on P(rows S cols) = P(rows rest cols), P the pattern, from `values`."""
    pick = lambda x: jnp.take_along_axis(_grouped(x, group), order, axis=-1)
    index = order.astype(values.dtype)
    apply = lambda v: pick(weigh(scattered(Entries(v, index), group), rows, cols))
    scale = pick(diagonals(rest, rows, cols))
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    residual = pick(weigh(rest, rows, cols)) - apply(values)

    def step(_, carry):
        v, residual, direction, energy = carry
        image = apply(direction)
        curve = jnp.sum(direction * image)
        length = jnp.where(curve > 0, energy / jnp.where(curve > 0, curve, 1), 0)
        v, residual = v + length * direction, residual - length * image
        z = inverse * residual
        after = jnp.sum(residual * z)
        ratio = jnp.where(energy > 0, after / jnp.where(energy > 0, energy, 1), 0)
        return v, residual, z + ratio * direction, after

    z = inverse * residual
    found = lax.fori_loop(0, CG_STEPS, step, (values, residual, z, jnp.sum(residual * z)))[0]
    lost = lambda v: loss(rest - scattered(Entries(v, index), group), rows, cols)
    # no entries at all are better than entries that a coupling leads astray
    best = jnp.where(lost(found) < lost(values), found, values)
    return jnp.where(lost(best) < loss(rest, rows, cols), best, 0)


def _grouped(x: Float[Array, "m n"], group: int) -> Float[Array, "n g i"]:
    return x.T.reshape(x.shape[1], -1, group)


def diagonal(
    rest: Float[Array, "m n"], rows: Array | None, cols: Array | None, last: Array | None
) -> Float[Array, "p q b"]:
    """The best diagonal blocks: one least-squares problem of order max(m, n)."""
    del last
    m, n = rest.shape
    b = min(m, n)
    at = jnp.arange(max(m, n))
    i, j = (at, at % b) if m >= n else (at % b, at)
    values = rest[i, j]
    if any(side is not None and side.ndim == 2 for side in (rows, cols)):
        pairs = jnp.ones((at.size, at.size), rest.dtype)
        for side, k in ((rows, i), (cols, j)):
            if side is None:
                pairs = pairs * (k[:, None] == k)
            else:
                full = side if side.ndim == 2 else jnp.diag(side)
                pairs = pairs * full[k][:, k]
        target = weigh(rest, rows, cols)[i, j]
        values = solve_ridge(pairs, target[:, None])[:, 0]
    return values.reshape(m // b, n // b, b)


def spread(values: Float[Array, "p q b"]) -> Float[Array, "m n"]:
    """The matrix of diagonal blocks."""
    p, q, b = values.shape
    full = values[:, None, :, :] * jnp.eye(b, dtype=values.dtype)[None, :, None, :]
    return full.reshape(p * b, q * b)
