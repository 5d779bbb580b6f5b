"""More rows for a factored table, without a refit: the rows that are there keep every bit."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from lrjax import ops
from lrjax.decompose.tensor_train.tokens import token_train
from lrjax.errors import ShapeError, message
from lrjax.formats import Banded, Factored, LowRank, TokenTrain
from lrjax.formats.banded import digits_of


class Grown(NamedTuple):
    """A table with more rows behind its own.

    Attributes:
        table: in the same format; or a `Banded` of the table and the new rows, where the format has
            no place for rows.
        error: what each new row lost, as a share of its norm.
    """

    table: Any
    error: Float[Array, " rows"]


def grow(table: Any, rows: Float[Array, "rows n"], *, band: int | None = None) -> Grown:
    """The table with the rows behind its own, for new words of a vocabulary; on the host.

    - a `LowRank` table takes each row's projection on the basis that it has;
    - a `TokenTrain` solves the new rows alone, at its digits and ranks;
    - of a `Banded` table each row joins the factored band that holds it best, or the given one;
    - an array, or a table whose rows share their factors (tensor trains, Kronecker and Tucker
      forms), gets the rows as they are.

    Args:
        table: a matrix [V, n], an array or factored.
        rows: the new ones, dense.
        band: which band of a `Banded` table takes the rows: a dense one keeps them as they are.

    Raises:
        ShapeError: the table is no matrix, the rows have another width, or are not finite; or there
            is no such band that takes rows.
    """
    rows = jnp.asarray(rows)
    if table.ndim != 2 or rows.ndim != 2 or rows.shape[1] != table.shape[1]:
        _refuse(f"rows of shape {rows.shape}", f"[rows, n] for a table of shape {table.shape}")
    if not np.isfinite(np.asarray(rows, np.float32)).all():
        _refuse("rows that are not finite", "finite values")
    rows = rows.astype(table.dtype)
    longer = _joined(table, rows, band) if isinstance(table, Banded) else _longer(table, rows)
    return Grown(longer, _lost(rows, _last(longer, len(rows))))


def _longer(table: Any, rows: Array) -> Any:
    match table:
        case LowRank(rows=None, cols=None, order=None):
            left = jnp.concatenate([table.left, _coordinates(table, rows)])
            return dataclasses.replace(table, left=left)
        case TokenTrain():
            return table.append(token_train(rows, table.modes, table.rank)[0])
        case Factored():
            bands, count = (table, rows), len(rows) + table.shape[0]
            return Banded(bands, digits_of(np.arange(count), count, table.dtype))
    return jnp.concatenate([table, rows])


def _joined(table: Banded, rows: Array, band: int | None) -> Banded:
    """Every row in its band; the places of the bands behind move on."""
    bands, sizes = list(table.bands), np.array(table.sizes)
    factored = [k for k, b in enumerate(bands) if isinstance(b, LowRank | TokenTrain)]
    dense = [k for k, b in enumerate(bands) if not isinstance(b, Factored)]
    if band is not None and band not in (*factored, *dense):
        _refuse(f"band {band}", f"one of {sorted((*factored, *dense))}, which take rows")
    takers = [band] if band is not None else factored or dense[-1:]
    if not takers:  # all bands share factors among their rows: one more, dense
        bands, sizes, takers = [*bands, rows[:0]], np.append(sizes, 0), [len(bands)]
    lost = [_lost(rows, _last(_longer(bands[k], rows), len(rows))) for k in takers]
    best = np.array(takers)[np.argmin(np.stack(lost), axis=0)]
    for k in takers:
        bands[k] = _longer(bands[k], rows[best == k]) if (best == k).any() else bands[k]
    ends, joined = np.cumsum(sizes), np.bincount(best, minlength=len(sizes))
    shift = np.cumsum(joined) - joined
    old = np.asarray(table.place, np.int64)
    old = old + shift[np.searchsorted(ends, old, side="right")]
    among = np.array([np.sum(best[:i] == k) for i, k in enumerate(best)], np.int64)
    place = np.concatenate([old, (ends + shift)[best] + among])
    return Banded(tuple(bands), digits_of(place, len(place), table.dtype))


def _coordinates(table: LowRank, rows: Array) -> Array:
    """The rows' least-squares coordinates in the basis of the table."""
    right = table.right.astype(jnp.float32)
    return jnp.linalg.lstsq(right.T, rows.astype(jnp.float32).T)[0].T.astype(rows.dtype)


def _last(table: Any, count: int) -> Array:
    return ops.take(table, np.arange(table.shape[0] - count, table.shape[0]))


def _lost(rows: Array, new: Array) -> Array:
    rows, new = rows.astype(jnp.float32), new.astype(jnp.float32)
    size = jnp.linalg.norm(rows, axis=1)
    return jnp.linalg.norm(rows - new, axis=1) / jnp.where(size > 0, size, 1)


def _refuse(got: str, expected: str) -> None:
    todo = "Give finite dense rows, as wide as the table."
    raise ShapeError(message(got=got, expected=expected, todo=todo))
