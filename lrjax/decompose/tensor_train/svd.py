"""TT-SVD: one truncated SVD a bond, left to right; by ranks, or by tolerance."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.tensor_train.cores import (
    Digits,
    Train,
    check_digits,
    check_ranks,
    interleave,
    join,
    separate,
)
from lrjax.formats.tensor_train import TensorTrain
from lrjax.linalg import Accuracy, Info, Status, singular_values, truncated_svd
from lrjax.linalg.cut import CHUNK, cut
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import CANCELS, squares, total, unit_of

GRAM_TOLERANCE = 1e-3
"""Relative tolerance below which singular values come from the full SVD: those of a Gram in
float32 are rounding below 3e-4 of the largest."""


class Split(NamedTuple):
    """Cores of unit * X, all but the last orthonormal, and what was seen of X on the way."""

    cores: Train
    unit: Array
    energy: Array
    finite: Array
    deficient: Array


def tt_svd(
    w: Float[Array, "*S M N"],
    rows: Digits,
    cols: Digits,
    ranks: Sequence[int],
    *,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
) -> tuple[TensorTrain, Info]:
    """A tensor train of the given ranks, at most sqrt(d - 1) times the least possible error.

    Bond k is cut by the truncated SVD of what the bonds before it left; the squared error is at
    most the sum of the tails of the unfoldings (Oseledets, 2011). All cores but the last have
    orthonormal columns.

    Args:
      w: matrices, stack axes leading; sides that the digits do not fill are padded with zeros.
      rows: digits of the row index, m_1 ... m_d.
      cols: digits of the column index, n_1 ... n_d; ones where there are fewer.
      ranks: r_1 ... r_{d-1}.
      key: randomness of large truncated SVDs.
      accuracy: of the truncated SVDs.

    Returns:
      The weight, [*S, M, N], and Info: certificate is the bound on |W - W'| / least |W - W'|.

    Raises:
      ShapeError: the digits do not hold the weight.
      RankError: a rank is out of range.
    """
    check_digits(w, rows, cols)
    ranks = check_ranks(pairs(rows, cols), ranks)
    key = jax.random.key(0) if key is None else key
    w = lax.stop_gradient(w)
    cores, info = _solve(w, key, rows=rows, cols=cols, ranks=ranks, accuracy=accuracy)
    certificate = jnp.full(w.shape[:-2], math.sqrt(max(len(ranks), 1)))
    return weight(cores, w), dataclasses.replace(info, certificate=certificate)


def train_ranks(w: Float[Array, "M N"], rows: Digits, cols: Digits, tol: float) -> tuple[int, ...]:
    """The ranks at which TT-SVD misses at most tol |W|: host-side planning, before any jit.

    Each bond may drop singular values of tol^2 |W|^2 / (d - 1) in squares, the last one whatever
    the others left of that.

    Raises:
      ShapeError: the digits do not hold the weight.
    """
    check_digits(w, rows, cols)
    accuracy = Accuracy.EXACT if tol < GRAM_TOLERANCE else Accuracy.DEFAULT
    shape = pairs(rows, cols)
    rest = interleave(working(w), rows, cols)
    left, ranks = float(jnp.sum(rest.astype(jnp.float32) ** 2)) * tol**2, []
    for k in range(len(shape) - 1):
        matrix = rest.reshape((ranks[-1] if ranks else 1) * shape[k], -1)
        energy = np.asarray(singular_values(matrix, accuracy=accuracy), np.float64) ** 2
        tails = np.append(np.cumsum(energy[::-1])[::-1], 0.0)
        rank = max(int(np.argmax(tails <= left / (len(shape) - 1 - k))), 1)
        svd, _ = truncated_svd(matrix, rank, accuracy=accuracy)
        left, rest = left - tails[rank], svd.s[:, None] * svd.vt
        ranks.append(rank)
    return tuple(ranks)


def pairs(rows: Digits, cols: Digits) -> tuple[int, ...]:
    """Sizes of the pairs of digits, d_k = m_k n_k."""
    return tuple(m * n for m, n in zip(rows, cols, strict=True))


def weight(cores: tuple[Array, ...], w: Any) -> TensorTrain:
    """Cores [*S, r, m, n, s] as the weight of w's shape and dtype."""
    train = TensorTrain(tuple(core.astype(w.dtype) for core in cores))
    m, n = train.shape[-2:]
    rows = None if m == w.shape[-2] else (w.shape[-2],)
    cols = None if n == w.shape[-1] else (w.shape[-1],)
    return dataclasses.replace(train, rows=rows, cols=cols)


def split(x: Float[Array, "*d"], ranks: tuple[int, ...], key: Array, accuracy: Accuracy) -> Split:
    """The cores of one tensor, left to right; the tensor is read, never copied."""
    unit, energy, finite = unit_of(x)
    cores, deficient, rest, last, scale = [], jnp.zeros((), bool), x, 1, unit
    for size, rank in zip(x.shape[:-1], ranks, strict=True):
        left, rest, short = cut(rest.reshape(last * size, -1), rank, scale, finite, key, accuracy)
        cores.append(left.reshape(last, size, rank))
        deficient, last, scale = deficient | short, rank, 1.0
    rest = rest if cores else x * unit
    return Split((*cores, rest.reshape(last, x.shape[-1], 1)), unit, energy, finite, deficient)


@functools.partial(jax.jit, static_argnames=("rows", "cols", "ranks", "accuracy"))
def _solve(w, key, *, rows: Digits, cols: Digits, ranks: tuple[int, ...], accuracy: Accuracy):
    def single(w: Array) -> tuple[Any, Info]:
        x = interleave(w, rows, cols)
        found = split(x, ranks, key, accuracy)
        missed = residual(x, found) - padding(found.cores, rows, cols, w.shape)
        missed = jnp.sqrt(jnp.maximum(missed, 0)) / found.unit
        cores = finish(found.cores, found.unit, found.finite, rows, cols)
        return cores, Info(
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
    a, left = x.reshape(x.shape[0], -1), first.reshape(x.shape[0], -1)
    right = join((*others, jnp.ones((1, 1, 1)))).reshape(left.shape[1], -1)
    n = a.shape[1]

    def of(start: Array | int, width: int) -> Array:
        part = lambda y: lax.dynamic_slice_in_dim(y, start, width, axis=1)
        return total((part(a) * found.unit - dot(left, part(right))) ** 2)

    count = n // CHUNK
    tail = of(count * CHUNK, n % CHUNK) if n % CHUNK else jnp.zeros((), a.dtype)
    if not count:
        return tail
    return lax.fori_loop(0, count, lambda i, sum_: sum_ + of(i * CHUNK, CHUNK), tail)


def padding(cores: Train, rows: Digits, cols: Digits, shape: tuple[int, ...]) -> Array:
    """The squares of what the cores put into the padding, all of it under the last first digit."""
    (m, n), (first, *others) = shape, cores
    first = first.reshape(rows[0], cols[0], -1)
    energy = jnp.zeros((), first.dtype)
    whole = math.prod(rows), math.prod(cols)
    if m < whole[0]:
        tail = join((first[-1:].reshape(1, cols[0], -1), *others))
        tail = separate(tail, (1, *rows[1:]), cols)
        energy += jnp.sum(tail[m - whole[0] :] ** 2)
    if n < whole[1]:
        tail = join((first[:, -1:].reshape(1, rows[0], -1), *others))
        tail = separate(tail, rows, (1, *cols[1:]))
        energy += jnp.sum(tail[:m, n - whole[1] :] ** 2)
    return energy


def finish(cores: Train, unit: Array, finite: Array, rows: Digits, cols: Digits) -> Any:
    """Cores [r, m, n, s] in the unit of the input; zero where that was not finite."""
    *others, last = cores
    return tuple(
        jnp.where(finite, core, 0).reshape(core.shape[0], m, n, core.shape[-1])
        for core, m, n in zip((*others, last / unit), rows, cols, strict=True)
    )


def status(finite: Array, deficient: Array, settled: Array | bool = True) -> Array:
    """The `Status` value of one solve."""
    value = jnp.where(settled, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    value = jnp.where(deficient, int(Status.RANK_DEFICIENT), value)
    return jnp.where(finite, value, int(Status.NON_FINITE)).astype(jnp.int32)


def rounded(w: TensorTrain, ranks: Sequence[int], *, key: Array | None = None) -> TensorTrain:
    """The train at lower ranks, without its dense weight: the TT-SVD of the weight it stands for.

    Right-to-left QR makes the cores behind each bond orthonormal, so that the truncated SVD of one
    core, left to right, is that of the whole unfolding (Oseledets, 2011, algorithm 2).

    Raises:
      RankError: a rank is out of range or above the train's own.
    """
    rows, cols = w.modes
    ranks = check_ranks(pairs(rows, cols), tuple(map(min, ranks, w.rank)))
    key = jax.random.key(0) if key is None else key
    cores = _round(w.cores, key, ranks=ranks)
    return dataclasses.replace(w, cores=tuple(c.astype(w.dtype) for c in cores))


def resized(w: TensorTrain, ranks: tuple[int, ...]) -> TensorTrain:
    """The train at these ranks: rounded where they are lower, padded with zeros where higher."""
    if any(a < b for a, b in zip(ranks, w.rank, strict=True)):
        w = rounded(w, ranks)
    chain = (1, *ranks, 1)

    def padded(core: Array, k: int) -> Array:
        grow = [(0, 0)] * core.ndim
        grow[-4] = (0, chain[k] - core.shape[-4])
        grow[-1] = (0, chain[k + 1] - core.shape[-1])
        return jnp.pad(core, grow)

    return dataclasses.replace(w, cores=tuple(padded(c, k) for k, c in enumerate(w.cores)))


@functools.partial(jax.jit, static_argnames=("ranks",))
def _round(cores, key, *, ranks: tuple[int, ...]):
    def single(*cores: Array) -> tuple[Array, ...]:
        digits = [core.shape[1:3] for core in cores]
        flat = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in cores]
        flat = list(right_orthonormal(tuple(flat)))
        for k, rank in enumerate(ranks):
            core = flat[k]
            svd, _ = truncated_svd(core.reshape(-1, core.shape[-1]), rank, key=key)
            flat[k] = svd.u.reshape(core.shape[0], core.shape[1], rank)
            after = flat[k + 1]
            carry = dot(svd.s[:, None] * svd.vt, after.reshape(after.shape[0], -1))
            flat[k + 1] = carry.reshape(rank, *after.shape[1:])
        return tuple(
            core.reshape(core.shape[0], *mn, core.shape[-1])
            for core, mn in zip(flat, digits, strict=True)
        )

    return over_stack(single, [working(core) for core in cores], core=4)


def right_orthonormal(cores: Train) -> Train:
    """The same train with every core but the first of orthonormal rows [r, (d s)]."""
    out = list(cores)
    for k in range(len(out) - 1, 0, -1):
        core, before = out[k], out[k - 1]
        q, r = jnp.linalg.qr(core.reshape(core.shape[0], -1).T)
        out[k] = q.T.reshape(-1, *core.shape[1:])
        carried = dot(before.reshape(-1, before.shape[-1]), r.T)
        out[k - 1] = carried.reshape(*before.shape[:2], -1)
    return tuple(out)
