"""Matrices as tensors: each mode is a digit of the row index beside one of the column index."""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lrjax.errors import RankError, ShapeError, message

Digits = tuple[int, ...]


def pairs(rows: Digits, cols: Digits) -> tuple[int, ...]:
    """Sizes of the pairs of digits, d_k = m_k n_k."""
    return tuple(m * n for m, n in zip(rows, cols, strict=True))


def interleave(w: Shaped[Array, "*S M N"], rows: Digits, cols: Digits) -> Shaped[Array, "..."]:
    """X[*S, (i_1 j_1), ..., (i_d j_d)] = W[*S, (i_1 ... i_d), (j_1 ... j_d)].

    A side that the digits exceed is padded with zeros behind it.
    """
    *stack, m, n = w.shape
    d, s = len(rows), len(stack)
    missing = ((0, math.prod(rows) - m), (0, math.prod(cols) - n))
    if missing != ((0, 0), (0, 0)):
        w = jnp.pad(w, ((0, 0),) * s + missing)
    # Digits of one value stay out of the transpose, which is none where columns have no digits.
    sizes = (*rows, *cols)
    order = [axis for k in range(d) for axis in (k, d + k) if sizes[axis] > 1]
    kept = sorted(order)
    w = w.reshape(*stack, *(sizes[axis] for axis in kept))
    w = w.transpose((*range(s), *(s + kept.index(axis) for axis in order)))
    return w.reshape(*stack, *(a * b for a, b in zip(rows, cols, strict=True)))


def separate(x: Float[Array, "*d"], rows: Digits, cols: Digits) -> Float[Array, "M N"]:
    """The padded matrix that `interleave` made X of; without stack axes."""
    d = len(rows)
    x = x.reshape([n for pair in zip(rows, cols, strict=True) for n in pair])
    x = x.transpose((*range(0, 2 * d, 2), *range(1, 2 * d, 2)))
    return x.reshape(math.prod(rows), math.prod(cols))


@functools.lru_cache(1024)
def balanced(size: int, count: int) -> Digits:
    """`count` digits near each other whose product is `size`, or little more.

    One percent of padding is worth a ratio of 1.2 between the digits.
    """
    if count == 1:
        return (size,)
    root = size ** (1 / count)
    best: tuple[float, Digits] = (math.inf, ())
    for last in range(max(int(0.5 * root), 1), int(2 * root) + 2):
        head = balanced(-(-size // last), count - 1)
        found = (*head, last)
        padding = math.log(math.prod(found) / size)
        best = min(best, (padding + 0.05 * math.log(max(found) / min(found)), found))
    return best[1]


@functools.lru_cache(1024)
def aligned(dims: tuple[int, ...], count: int) -> Digits:
    """`count` digits near each other whose index is that of these dimensions, merged row-major.

    A digit ends where a dimension does, or both within one that it divides; none is padded.
    """
    size = math.prod(dims)
    ends = [math.prod(dims[k + 1 :]) for k in range(len(dims))]
    # What is behind the end of a digit: whole dimensions, and a divisor of the one before them.
    sizes = zip(ends, dims, strict=True)
    cuts = {end * t for end, n in sizes for t in range(1, n + 1) if n % t == 0}

    @functools.cache
    def best(rest: int, count: int) -> tuple[float, Digits]:
        if count == 1:
            return math.log(rest) ** 2, (rest,)
        parts = ((cut, best(cut, count - 1)) for cut in cuts if rest % cut == 0)
        return min((math.log(rest // cut) ** 2 + x, (rest // cut, *own)) for cut, (x, own) in parts)

    return best(size, count)[1]


def check_digits(w: Array, rows: Digits, cols: Digits) -> None:
    """Check that the digits hold the last two dimensions of w.

    Raises:
      ShapeError: they do not, or more than the last block of a side would be padding.
    """
    if w.ndim < 2 or len(rows) != len(cols) or not rows:
        got = f"digits {rows} and {cols} for shape {w.shape}"
        todo = "Use ones where one side has fewer digits."
        expected = "as many digits of rows as of columns, and a matrix"
        raise ShapeError(message(got=got, expected=expected, todo=todo))
    for name, size, digits in zip(("rows", "columns"), w.shape[-2:], (rows, cols), strict=True):
        block = math.prod(digits[1:])
        if math.prod(digits) < size or size <= (digits[0] - 1) * block:
            got = f"{size} {name} for digits {digits}, {math.prod(digits)} in all"
            expected = f"digits whose product is {size}, or more by less than {block}"
            todo = "Choose digits that fit, e.g. the first as ceil(size / product of the others)."
            raise ShapeError(message(got=got, expected=expected, todo=todo))


def bounds(shape: Sequence[int]) -> tuple[int, ...]:
    """The largest rank of each bond that a train of this shape can use."""
    cuts = range(1, len(shape))
    return tuple(min(math.prod(shape[:k]), math.prod(shape[k:])) for k in cuts)


def check_ranks(shape: Sequence[int], ranks: Sequence[int]) -> tuple[int, ...]:
    """The ranks, if a train of this shape can have them.

    Raises:
      ShapeError: not one rank a bond.
      RankError: a rank below one, or above what the digits on one side, or the next ranks, span.
    """
    ranks = tuple(int(r) for r in ranks)
    if len(ranks) != len(shape) - 1:
        got, expected = f"{len(ranks)} ranks {ranks}", f"{len(shape) - 1}, one a bond"
        todo = f"The weight has {len(shape)} cores."
        raise ShapeError(message(got=got, expected=expected, todo=todo))
    chain = (1, *ranks, 1)
    for k, rank in enumerate(ranks):
        most = min(chain[k] * shape[k], shape[k + 1] * chain[k + 2])
        if not 1 <= rank <= most:
            got = f"rank {rank} of bond {k} in {ranks} for pairs of digits {tuple(shape)}"
            expected = f"1 to {most}: a rank times its digit on either side"
            raise RankError(message(got=got, expected=expected, todo="Change the ranks."))
    return ranks
