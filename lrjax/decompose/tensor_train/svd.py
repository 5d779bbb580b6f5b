"""TT-SVD: one truncated SVD a bond, left to right; by ranks, or by tolerance."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.chain.cores import gauged, weight
from lrjax.decompose.chain.digits import Digits, check_digits, check_ranks, interleave, pairs
from lrjax.decompose.chain.svd import chain_svd
from lrjax.formats.tensor_train import TensorTrain
from lrjax.linalg import Accuracy, Info, singular_values, truncated_svd
from lrjax.linalg.stack import dot, over_stack, working

GRAM_TOLERANCE = 1e-3
"""Relative tolerance below which singular values come from the full SVD: those of a Gram in
float32 are rounding below 3e-4 of the largest."""


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
    w, bonds = lax.stop_gradient(w), (1, *ranks)
    cores, info = chain_svd(w, key, rows=rows, cols=cols, ranks=bonds, accuracy=accuracy)
    certificate = jnp.full(w.shape[:-2], math.sqrt(max(len(ranks), 1)))
    return weight(TensorTrain, cores, w), dataclasses.replace(info, certificate=certificate)


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
        flat = list(gauged(tuple(flat)))
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
