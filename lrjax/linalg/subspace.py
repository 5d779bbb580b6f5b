"""Leading vectors of a Gram matrix by block iteration, where the whole eigenproblem is dear."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.linalg.draw import normal
from lrjax.linalg.normal import largest
from lrjax.linalg.orthonormal import cholesky_qr2, fix_signs
from lrjax.linalg.policy import EIGH_SHARE
from lrjax.linalg.stack import dot

DIRECT = 160
"""Up to this order the whole eigenproblem is solved: 0.7 ms at 128, 16 ms at 512."""

PASSES = 3
"""Products with the Gram from a start. Order 512, rank 128: 7 ms in place of 16."""


def surplus(rank: int) -> int:
    """Vectors beyond the rank."""
    return min(max(3 * rank // 8, 16), 64)


def leading_vectors(
    gram: Float[Array, "n n"],
    rank: int,
    key: Array,
    start: Float[Array, "n r"] | None = None,
    *,
    finite: Array | bool = True,
    passes: int = PASSES,
) -> Float[Array, "n r"]:
    """Orthonormal vectors with the largest Ritz values, falling: exact, or near it from a start.

    Subspace iteration on the start and some random vectors beside it, then Rayleigh-Ritz: what the
    vectors capture of the Gram, tr V'GV, is never less than what the start does. Vectors of a
    former, similar Gram are the start that makes few passes enough.
    """
    n = len(gram)
    gram = jnp.where(finite, gram, 0)
    width = rank + surplus(rank)
    if n <= DIRECT or width > EIGH_SHARE * n:
        return fix_signs(largest(gram, rank, jnp.asarray(True))[1])[0].T
    if start is None:
        images = dot(gram, normal(key, (n, width), gram.dtype))
        basis = jnp.linalg.qr(images)[0].T  # powers of a random start are nearly parallel
        passes -= 1
    else:
        extra = normal(key, (width - rank, n), gram.dtype) / n**0.5
        basis = jnp.concatenate([start.T, extra])
    step = lambda _, b: cholesky_qr2(_even(dot(b, gram)))
    basis = lax.fori_loop(0, passes, step, basis)
    mix = largest(dot(dot(basis, gram), basis.T), rank, jnp.asarray(True))[1]
    rows = dot(mix, basis)
    lost = jnp.min(jnp.sum(rows**2, axis=1)) < 0.5  # zero rows, of a Gram of lower rank
    rows = lax.cond(lost, lambda r: jnp.linalg.qr(r.T)[0].T, lambda r: r, rows)
    return fix_signs(rows)[0].T


def _even(rows: Array) -> Array:
    """Rows of norm one, zeros left as they are: their span is then found to equal digits."""
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1)
