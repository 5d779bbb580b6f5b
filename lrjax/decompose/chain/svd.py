"""Sequential truncated SVDs: the chain of a tensor, cut bond by bond from the left."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.chain.cores import Chain, close, finish, join, status
from lrjax.decompose.chain.digits import Digits, interleave, separate
from lrjax.linalg import Accuracy, Info
from lrjax.linalg.cut import CHUNK, cut
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import CANCELS, squares, total, unit_of


class Split(NamedTuple):
    """Cores of unit * X, all but the last orthonormal, and what was seen of X on the way."""

    cores: Chain
    unit: Array
    energy: Array
    finite: Array
    deficient: Array


def split(x: Float[Array, "*d"], ranks: tuple[int, ...], key: Array, accuracy: Accuracy) -> Split:
    """The cores of one tensor, left to right; the tensor is read, never copied.

    `ranks` are those of the bonds before each core. The first cut is at r_0 r_1 vectors, r_0 of
    them for each index of the second bond; the bond r_0 goes along with the last digit, so that
    what is left of a ring is cut as a train (Zhao et al., arXiv:1606.05535, algorithm 1).
    """
    unit, energy, finite = unit_of(x)
    if x.ndim == 1:
        return Split((x[None, :, None] * unit,), unit, energy, finite, jnp.zeros((), bool))
    ends, second, *others = ranks
    matrix = x.reshape(x.shape[0], -1)
    left, rest, deficient = cut(matrix, ends * second, unit, finite, key, accuracy)
    cores = [left.reshape(-1, second, ends).transpose(2, 0, 1)]
    rest, last = rest.reshape(second, ends, -1).swapaxes(1, 2), second
    for size, rank in zip(x.shape[1:-1], others, strict=True):
        left, rest, short = cut(rest.reshape(last * size, -1), rank, 1.0, finite, key, accuracy)
        cores.append(left.reshape(last, size, rank))
        deficient, last = deficient | short, rank
    cores.append(rest.reshape(last, x.shape[-1], ends))
    return Split(tuple(cores), unit, energy, finite, deficient)


@functools.partial(jax.jit, static_argnames=("rows", "cols", "ranks", "first", "accuracy"))
def chain_svd(
    w: Float[Array, "*S M N"],
    key: Array,
    *,
    rows: Digits,
    cols: Digits,
    ranks: tuple[int, ...],
    first: int = 0,
    accuracy: Accuracy = Accuracy.DEFAULT,
) -> tuple[tuple[Array, ...], Info]:
    """`split` of matrices under their digits: cores [*S, r, m, n, s], and Info.

    Core number `first` is cut off first; `ranks` are those of the bonds before each core.
    """
    turned = lambda xs: (*xs[first:], *xs[:first])

    def single(w: Array) -> tuple[Any, Info]:
        x = interleave(w, rows, cols)
        x = x.transpose(turned(range(x.ndim)))
        found = split(x, turned(ranks), key, accuracy)
        cores = (*found.cores[len(rows) - first :], *found.cores[: len(rows) - first])
        missed = residual(x, found) - padding(cores, rows, cols, w.shape)
        missed = jnp.sqrt(jnp.maximum(missed, 0)) / found.unit
        return finish(cores, found.unit, found.finite, rows, cols), Info(
            jnp.where(found.finite, missed, jnp.nan),
            jnp.ones((), jnp.int32),
            status(found.finite, found.deficient),
        )

    return over_stack(single, [working(w)], core=2)


def residual(x: Float[Array, "*d"], found: Split) -> Array:
    """|unit X - X'|^2: X' is an orthogonal projection of X, whose squares are the last core's.

    Where too few digits are left of their difference, from the difference of the tensors.
    """
    cheap = found.energy - squares(found.cores[-1])
    return lax.cond(cheap > CANCELS * found.energy, lambda: cheap, lambda: _missed(x, found))


def _missed(x: Float[Array, "*d"], found: Split) -> Array:
    """|unit X - X'|^2, some columns of the first unfolding at a time."""
    first, *others = found.cores
    a, left = x.reshape(x.shape[0], -1), first.transpose(1, 2, 0).reshape(x.shape[0], -1)
    right = join((*others, jnp.eye(first.shape[0])[:, None])).swapaxes(1, 2)
    right, n = right.reshape(left.shape[1], -1), a.shape[1]

    def of(start: Array | int, width: int) -> Array:
        part = lambda y: lax.dynamic_slice_in_dim(y, start, width, axis=1)
        return total((part(a) * found.unit - dot(left, part(right))) ** 2)

    count = n // CHUNK
    tail = of(count * CHUNK, n % CHUNK) if n % CHUNK else jnp.zeros((), a.dtype)
    if not count:
        return tail
    return lax.fori_loop(0, count, lambda i, sum_: sum_ + of(i * CHUNK, CHUNK), tail)


def padding(cores: Chain, rows: Digits, cols: Digits, shape: tuple[int, ...]) -> Array:
    """The squares of what the cores put into the padding, all of it under the last first digit."""
    (m, n), (first, *others) = shape, cores
    first = first.reshape(-1, rows[0], cols[0], first.shape[-1])
    energy = jnp.zeros((), first.dtype)
    whole = math.prod(rows), math.prod(cols)
    if m < whole[0]:
        tail = close((first[:, -1], *others))
        tail = separate(tail, (1, *rows[1:]), cols)
        energy += jnp.sum(tail[m - whole[0] :] ** 2)
    if n < whole[1]:
        tail = close((first[:, :, -1], *others))
        tail = separate(tail, rows, (1, *cols[1:]))
        energy += jnp.sum(tail[:m, n - whole[1] :] ** 2)
    return energy
