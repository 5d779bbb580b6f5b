"""Two-site sweeps (DMRG): neighbouring cores solved together, then cut apart."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrjax.decompose.chain.cores import Chain, join
from lrjax.decompose.chain.local import improve
from lrjax.decompose.chain.sweeps import Problem, frames
from lrjax.linalg import Accuracy
from lrjax.linalg.cut import cut


def sweep(train: Chain, problem: Problem) -> Chain:
    """Every pair of neighbours once to the right and once to the left; right-orthonormal cores.

    The pair's least-squares problem is solved between orthonormal frames, and its product is cut
    by the truncated SVD at the rank of the bond, which is optimal without a metric (White, 1992;
    Holtz, Rohwedder and Schneider, 2012). Under one the cut may cost more than the step gained:
    the caller keeps the best train.
    """
    d, cores, (left, right) = len(train), list(train), frames(train)
    target, weigh, means = problem

    def solved(k: int) -> Array:
        """The pair k, k + 1 as a matrix [(r d_k), (d_{k+1} s)]."""
        r, s = cores[k].shape[0], cores[k + 1].shape[2]
        mean = jnp.outer(means[k], means[k + 1])
        mean = mean.ravel() / jnp.maximum(jnp.sqrt(jnp.mean(mean)), jnp.finfo(mean.dtype).tiny)
        pair = join((cores[k], cores[k + 1]))
        pair = improve(pair, left[k], right[k + 1], target, weigh, mean)
        return pair.reshape(r * cores[k].shape[1], cores[k + 1].shape[1] * s)

    def parts(matrix: Array, rank: int) -> tuple[Array, Array]:
        found = cut(matrix, rank, 1.0, jnp.ones((), bool), jax.random.key(0), Accuracy.DEFAULT)
        return found.left, found.rest

    for k in range(d - 1):
        rank = cores[k].shape[2]
        first, second = parts(solved(k), rank)
        cores[k] = first.reshape(*cores[k].shape[:2], rank)
        cores[k + 1] = second.reshape(rank, *cores[k + 1].shape[1:])
        left[k + 1] = join((left[k], cores[k]))
    for k in range(d - 2, -1, -1):
        rank = cores[k].shape[2]
        second, first = parts(solved(k).T, rank)
        cores[k] = first.T.reshape(*cores[k].shape[:2], rank)
        cores[k + 1] = second.T.reshape(rank, *cores[k + 1].shape[1:])
        right[k] = join((cores[k + 1], right[k + 1]))
    return tuple(cores)
