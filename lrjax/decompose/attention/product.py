"""Smaller heads by the best product: of query and key kernels, of value and output kernels.

A head knows its query and key kernels by their product alone, x (Q K') y', and its value and output
kernels by theirs, x (V O). For A B' with r columns each instead of h,

    min |A B' - (A L) (R B')|  over L [h, r], R [r, h]

is the truncated SVD of A B', for its rows lie in the span of B' and its columns in that of A. With
D = I - L R it is tr(D' (A'A) D (B'B)): the weighted SVD of the identity of order h under the two
Grams. No matrix of the order of the model's width is formed. Several heads that share B (query
heads of one key head) share L and R too, and their Grams add up.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.attention.heads import inner
from lrjax.errors import RankError, message
from lrjax.linalg import Info, Status, weighted_svd
from lrjax.linalg.stack import dot


class Product(NamedTuple):
    """A B' ~ (A left) (right B'): left [*S, n, r], right [*S, r, n], and what the solve said.

    ``s`` [*S, r] are the leading singular values of A B'; what is lost is in ``info.residual``.
    """

    left: Array
    right: Array
    s: Array
    info: Info


def product(rows: Float[Array, "*S n n"], cols: Float[Array, "*S n n"], size: int) -> Product:
    """The least tr(D' rows D cols), D = I - left @ right: `size` columns between A and B, not n.

    `rows` is A'A, `cols` is B'B. At full size left and right are the identity, exactly.

    Raises:
        RankError: a size below one or above n.
    """
    n = rows.shape[-1]
    if not 1 <= size <= n:
        raise RankError(
            message(
                got=f"a size of {size} for heads of {n}",
                expected=f"a size from 1 to {n}",
                todo="Choose a smaller size.",
            )
        )
    whole = jnp.broadcast_to(jnp.eye(n, dtype=rows.dtype), rows.shape)
    if size == n:
        stack = rows.shape[:-2]
        none = jnp.zeros(stack, rows.dtype)
        count = jnp.ones(stack, jnp.int32)
        info = Info(none, count, jnp.full(stack, int(Status.CONVERGED), jnp.int32))
        return Product(whole, whole, jnp.ones(rows.shape[:-1], rows.dtype), info)
    return Product(*weighted_svd(whole, size, rows=rows, cols=cols))


def score_product(
    query: Float[Array, "*S m d h"],
    key: Float[Array, "*S e h"],
    size: int,
    *,
    query_gram: Float[Array, "*#S d d"] | None = None,
    key_gram: Float[Array, "*#S e e"] | None = None,
) -> tuple[Float[Array, "*S m d r"], Float[Array, "*S e r"], Info]:
    """Queries of m heads and their one key head at a smaller size: the least change of all scores.

    min sum_m E (x (Q_m K' - Q'_m K'') y')^2 over independent tokens x and y (2505.12942, arXiv).
    A bias is the last row of its kernel, with `affine_gram`. A softmax does not see what it adds
    to all keys alike, so that `key_gram` is best a covariance and the key's bias is left out. Not
    for heads whose queries and keys are rotated between the kernels and the product.

    The scores keep the scale of the old head size.
    """
    rows = jnp.sum(inner(query, _headed(query_gram)), axis=-3)
    found = product(rows, inner(key, key_gram), size)
    new = dot(query, found.left[..., None, :, :])
    return new, dot(key, jnp.swapaxes(found.right, -1, -2)), found.info


def value_product(
    value: Float[Array, "*S d h"],
    output: Float[Array, "*S m h e"],
    size: int,
    *,
    gram: Float[Array, "*#S d d"] | None = None,
    cols: Float[Array, "*#S e e"] | None = None,
) -> tuple[Float[Array, "*S d r"], Float[Array, "*S m r e"], Info]:
    """A value head and the outputs of the m query heads that it serves, at a smaller size.

    min sum_m E |x (V O_m - V' O'_m)|^2, in the metric `cols` of the outputs if there is one
    (arXiv:2408.09632, arXiv:2505.12942). It holds with and without rotations.
    """
    outer = inner(jnp.swapaxes(output, -1, -2), _headed(cols))
    found = product(inner(value, gram), jnp.sum(outer, axis=-3), size)
    return dot(value, found.left), dot(found.right[..., None, :, :], output), found.info


def _headed(gram: Array | None) -> Array | None:
    return None if gram is None else gram[..., None, :, :]
