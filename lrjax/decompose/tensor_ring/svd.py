"""TR-SVD: the start of a tensor ring, one truncated SVD a bond."""

from collections.abc import Sequence

import jax
from jax import Array, lax
from jaxtyping import Float

from lrjax.decompose.chain.cores import weight
from lrjax.decompose.chain.digits import Digits, check_digits, pairs
from lrjax.decompose.chain.svd import chain_svd
from lrjax.decompose.tensor_ring.ranks import check_ranks
from lrjax.formats.tensor_ring import TensorRing
from lrjax.linalg import Accuracy, Info


def tr_svd(
    w: Float[Array, "*S M N"],
    rows: Digits,
    cols: Digits,
    ranks: Sequence[int],
    *,
    first: int = 0,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
) -> tuple[TensorRing, Info]:
    """A tensor ring of the given ranks by sequential truncated SVDs (arXiv:1606.05535).

    The unfolding of core `first` is cut at r r' vectors, r and r' the ranks on its two sides; what
    is left is cut as a train. How the vectors are dealt out to the two bonds is arbitrary, so that
    no bound holds for a ring as it does for a train, and a ring of these very ranks is not found:
    `tr_als` goes on from here. With r_0 = 1 it is TT-SVD.

    Args:
      w: matrices, stack axes leading; sides that the digits do not fill are padded with zeros.
      rows: digits of the row index, m_1 ... m_d.
      cols: digits of the column index, n_1 ... n_d; ones where there are fewer.
      ranks: r_0 ... r_{d-1}, each before its core.
      first: number of the core that is cut off first, from 0.
      key: randomness of large truncated SVDs.
      accuracy: of the truncated SVDs.

    Returns:
      The weight, [*S, M, N], and Info.

    Raises:
      ShapeError: the digits do not hold the weight.
      RankError: a rank is out of range, or r r' above the digits of core `first`.
    """
    check_digits(w, rows, cols)
    ranks = check_ranks(pairs(rows, cols), ranks, first)
    key = jax.random.key(0) if key is None else key
    cores, info = chain_svd(
        lax.stop_gradient(w), key, rows=rows, cols=cols, ranks=ranks, first=first, accuracy=accuracy
    )
    return weight(TensorRing, cores, w), info
