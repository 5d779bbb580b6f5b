"""Every row of a table as a tensor train of its own."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.chain.cores import join, status
from lrjax.decompose.chain.digits import Digits, check_digits, check_ranks
from lrjax.decompose.chain.svd import split
from lrjax.formats.token_train import TokenTrain
from lrjax.linalg import Accuracy, Info, Status
from lrjax.linalg.stack import over_stack, working


def token_train(
    w: Float[Array, "*S V H"], digits: Digits, ranks: Sequence[int], *, key: Array | None = None
) -> tuple[TokenTrain, Info]:
    """TT-SVD of each row, folded to its digits (TensorGPT, arXiv:2307.00526).

    Rows are independent: a table may be encoded shard by shard, and new tokens later, with equal
    results; see `TokenTrain.append`.

    Args:
      w: tables; columns that the digits exceed are padded with zeros.
      digits: n_1 ... n_d, whose product is H or a little more.
      ranks: r_1 ... r_{d-1}, the same for all rows.
      key: randomness of large truncated SVDs.

    Returns:
      The weight, and Info of the whole table [*S]: certificate is the bound sqrt(d - 1) on the
      ratio of each row's error to the least possible one.

    Raises:
      ShapeError: the digits do not hold the columns.
      RankError: a rank is out of range.
    """
    digits = tuple(digits)
    check_digits(w[..., :1, :], (1,) * len(digits), digits)
    ranks = check_ranks(digits, ranks)
    key = jax.random.key(0) if key is None else key
    cores, info = _solve(lax.stop_gradient(w), key, digits=digits, ranks=ranks)
    cols = None if math.prod(digits) == w.shape[-1] else w.shape[-1]
    return TokenTrain(tuple(core.astype(w.dtype) for core in cores), cols), info


@functools.partial(jax.jit, static_argnames=("digits", "ranks"))
def _solve(w, key, *, digits: Digits, ranks: tuple[int, ...]):
    missing = math.prod(digits) - w.shape[-1]
    x = jnp.pad(working(w), ((0, 0),) * (w.ndim - 1) + ((0, missing),))

    def row(x: Array):
        found = split(x.reshape(digits), (1, *ranks), key, Accuracy.DEFAULT)
        cores, unit, finite = found.cores, found.unit, found.finite
        missed = jnp.sum((x * unit - join(cores).ravel())[: w.shape[-1]] ** 2)
        *others, last = (jnp.where(finite, core, 0) for core in cores)
        unit = jnp.where(finite, 1 / unit, 0)
        return (*others, last * unit), jnp.sqrt(missed) * unit, status(finite, found.deficient)

    cores, missed, codes = over_stack(row, [x], core=1)
    # A zero row (padding tokens) is exact at any rank: only rows that are not finite are bad news.
    bad = jnp.any(codes == int(Status.NON_FINITE), axis=-1)
    peak = jnp.max(missed, axis=-1, keepdims=True)
    relative = missed / jnp.where(peak > 0, peak, 1)
    total = jnp.sqrt(jnp.sum(relative**2, axis=-1)) * peak[..., 0]
    code = jnp.where(bad, int(Status.NON_FINITE), int(Status.CONVERGED)).astype(jnp.int32)
    bound = jnp.full(w.shape[:-2], math.sqrt(max(len(ranks), 1)))
    residual = jnp.where(bad, jnp.nan, total)
    failed = lambda core: jnp.where(
        bad.reshape(*bad.shape, *(1,) * (core.ndim - bad.ndim)), 0, core
    )
    cores = tuple(map(failed, cores))
    return cores, Info(residual, jnp.ones(w.shape[:-2], jnp.int32), code, bound)
