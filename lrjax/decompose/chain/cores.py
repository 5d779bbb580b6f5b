"""Cores of trains and rings: what every solver of either does with them.

A chain in here is a tuple of cores [r_k, d_k, r_{k+1}], d_k = m_k n_k, whose last bond closes on
the first: r_d = r_0, which is 1 in a train.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.chain.digits import Digits
from lrjax.formats.chain import Chain as ChainWeight
from lrjax.linalg import Status
from lrjax.linalg.stack import dot

Chain = tuple[Float[Array, "_ _ _"], ...]
Weight = TypeVar("Weight", bound=ChainWeight)


def join(cores: Chain) -> Float[Array, "r D s"]:
    """Cores contracted from the left, [r_0, d_1 ... d_k, r_k]."""

    def pair(a: Array, b: Array) -> Array:
        y = dot(a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1))
        return y.reshape(a.shape[0], -1, b.shape[-1])

    return functools.reduce(pair, cores)


def close(cores: Chain) -> Float[Array, " D"]:
    """The tensor of a chain, flat: its two halves joined at both bonds that they share.

    That takes r_0 times the arithmetic of a train, and no intermediate r_0 times its size.
    """
    if len(cores) == 1:
        return jnp.einsum("ada->d", cores[0])
    half = _middle([core.shape[1] for core in cores])
    left, right = join(cores[:half]), join(cores[half:])
    left = left.transpose(1, 2, 0).reshape(left.shape[1], -1)
    right = right.transpose(0, 2, 1).reshape(-1, right.shape[1])
    return dot(left, right).ravel()


def _middle(sizes: Sequence[int]) -> int:
    """Where two parts are nearest in size."""
    return min(
        range(1, len(sizes)),
        key=lambda k: max(math.prod(sizes[:k]), math.prod(sizes[k:])),
    )


def gauged(cores: Chain) -> Chain:
    """The same chain with every core but the first of orthonormal rows [r, (d s)]."""
    out = list(cores)
    for k in range(len(out) - 1, 0, -1):
        out[k - 1], out[k] = to_the_left(out[k - 1], out[k])
    return tuple(out)


def to_the_left(before: Array, core: Array) -> tuple[Array, Array]:
    """Two neighbours, the second of orthonormal rows [r, (d s)], the first given the rest."""
    q, r = jnp.linalg.qr(core.reshape(core.shape[0], -1).T)
    carried = dot(before.reshape(-1, before.shape[-1]), r.T)
    return carried.reshape(*before.shape[:2], -1), q.T.reshape(-1, *core.shape[1:])


def to_the_right(core: Array, after: Array) -> tuple[Array, Array]:
    """Two neighbours, the first of orthonormal columns [(r d), s], the second given the rest."""
    q, r = jnp.linalg.qr(core.reshape(-1, core.shape[-1]))
    carried = dot(r, after.reshape(after.shape[0], -1))
    return q.reshape(*core.shape[:2], -1), carried.reshape(-1, *after.shape[1:])


def finish(cores: Chain, unit: Array, finite: Array, rows: Digits, cols: Digits) -> Any:
    """Cores [r, m, n, s] in the unit of the input; zero where that was not finite."""
    *others, last = cores
    return tuple(
        jnp.where(finite, core, 0).reshape(core.shape[0], m, n, core.shape[-1])
        for core, m, n in zip((*others, last / unit), rows, cols, strict=True)
    )


def weight(kind: type[Weight], cores: tuple[Array, ...], w: Any) -> Weight:
    """Cores [*S, r, m, n, s] as the weight of w's shape and dtype."""
    chain = kind(tuple(core.astype(w.dtype) for core in cores))
    m, n = chain.shape[-2:]
    rows = None if m == w.shape[-2] else (w.shape[-2],)
    cols = None if n == w.shape[-1] else (w.shape[-1],)
    return dataclasses.replace(chain, rows=rows, cols=cols)


def status(finite: Array, deficient: Array, settled: Array | bool = True) -> Array:
    """The `Status` value of one solve."""
    value = jnp.where(settled, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    value = jnp.where(deficient, int(Status.RANK_DEFICIENT), value)
    return jnp.where(finite, value, int(Status.NON_FINITE)).astype(jnp.int32)
