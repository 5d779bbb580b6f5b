"""Truncated SVD and singular values: the public face of the policy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.errors import RankError, ShapeError, message
from lrjax.linalg.info import Info, Status
from lrjax.linalg.normal import Leading, Normal
from lrjax.linalg.orthonormal import fix_signs
from lrjax.linalg.policy import Accuracy, Method, choose
from lrjax.linalg.stack import over_stack, working
from lrjax.linalg.tensor import CANCELS, missed, squares


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SVD:
    """A = u diag(s) vt, cut to rank r: u [*S, m, r], s [*S, r] falling, vt [*S, r, n].

    Signs: the entry of largest magnitude in every row of vt is positive.
    """

    u: Any
    s: Any
    vt: Any


def truncated_svd(
    a: Float[Array, "*S m n"],
    rank: int,
    *,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
    method: Method | None = None,
) -> tuple[SVD, Info]:
    """The leading `rank` singular triplets, of every matrix of a stack.

    min |A - U diag(s) V'| over U, V with r orthonormal columns; the method is chosen from shape,
    rank and backend (`policy.choose`), and solves in float32 (float64 if A is). The product of
    the factors is A V V' to rounding whatever the method. Left vectors of singular values below
    3e-4 s_1 lose orthogonality, and those of zero ones are zero; Accuracy.EXACT keeps both.
    Gradients are stopped: the derivative of singular vectors is infinite where values meet.

    Args:
      a: matrices; scaled inside, so 1e30 and 1e-30 are fine.
      rank: number of triplets, from 1 to min(m, n).
      key: randomness of the start block; None is a fixed key. The same key gives the same bits.
      accuracy: how near the optimum; see `Accuracy`.
      method: overrides the policy.

    Returns:
      The SVD, and Info with the Frobenius norm of A - U diag(s) V' and a status per matrix.

    Raises:
      RankError: rank below 1 or above min(m, n), or above what the given method can hold.
      ShapeError: `a` is not a matrix.
    """
    shape = matrix_shape(a)
    check_rank(rank, shape)
    method = method or choose(shape, rank, accuracy=accuracy, backend=jax.default_backend())
    check_method(method, rank, shape)
    key = jax.random.key(0) if key is None else key
    a = lax.stop_gradient(a)
    svd, deficient, finite = _solve(a, key, rank=rank, method=method)
    return svd, Info(
        residual=_residual(a, svd.s, svd.u * svd.s[..., None, :], svd.vt),
        iterations=jnp.full(a.shape[:-2], method.iterations, jnp.int32),
        status=status(finite, deficient),
    )


def singular_values(
    a: Float[Array, "*S m n"], *, accuracy: Accuracy = Accuracy.DEFAULT
) -> Float[Array, "*S k"]:
    """All min(m, n) singular values, falling; zeros where A is not finite.

    From the Gram of the shorter side, so values below 3e-4 s_1 are rounding (float32); with
    Accuracy.EXACT from the full SVD.
    """
    matrix_shape(a)
    return _values(lax.stop_gradient(a), exact=accuracy is Accuracy.EXACT)


def matrix_shape(a: Array, *, path: str | None = None) -> tuple[int, int]:
    """(m, n) of a matrix or stack of matrices; ShapeError if it is neither or has no entries."""
    if a.ndim < 2 or 0 in a.shape[-2:]:
        raise ShapeError(
            message(
                got=f"an array of shape {a.shape}",
                expected="a matrix [m, n], or a stack of them, with m, n >= 1",
                todo="Reshape the weight to a matrix first, or leave it out.",
                path=path,
            )
        )
    return a.shape[-2], a.shape[-1]


def check_rank(rank: int, shape: tuple[int, int]) -> None:
    """RankError unless 1 <= rank <= min(shape)."""
    if not 1 <= rank <= min(shape):
        raise RankError(
            message(
                got=f"rank {rank} for a {shape[0]} x {shape[1]} matrix",
                expected=f"a rank from 1 to {min(shape)}",
                todo="Choose a rank in that range.",
            )
        )


def check_method(method: Method, rank: int, shape: tuple[int, int]) -> None:
    """RankError if an explicitly given Krylov basis is smaller than the rank or too large."""
    size = getattr(method, "block", rank) * getattr(method, "steps", 1)
    if not rank <= size <= max(min(shape), rank):
        raise RankError(
            message(
                got=f"{method} for rank {rank} of a {shape[0]} x {shape[1]} matrix",
                expected=f"block * steps between {rank} and {min(shape)}",
                todo="Change block or steps, or leave the method to the policy.",
            )
        )


def status(finite: Array, deficient: Array) -> Array:
    """The `Status` values of a stack of direct solves."""
    fine = jnp.where(deficient, int(Status.RANK_DEFICIENT), int(Status.CONVERGED))
    return jnp.where(finite, fine, int(Status.NON_FINITE)).astype(jnp.int32)


def settle(lead: Leading) -> Leading:
    """Signs fixed, and zeros where the input was not finite."""
    vectors, images = fix_signs(lead.vectors, lead.images)
    vectors, images = (jnp.where(lead.finite, x, 0) for x in (vectors, images))
    return lead._replace(vectors=vectors, images=images)


def is_rounding(falling: Array) -> Array:
    """Whether the last of falling non-negative values is what rounding leaves of a zero."""
    return falling[-1] <= 32 * jnp.finfo(falling.dtype).eps * falling[0]


@functools.partial(jax.jit, static_argnames=("rank", "method"))
def _solve(a: Array, key: Array, *, rank: int, method: Method) -> tuple[SVD, Array, Array]:
    tall = a.shape[-2] >= a.shape[-1]

    def single(a: Array) -> tuple[SVD, Array, Array]:
        lead = settle(method.leading(Normal(a if tall else a.T), rank, key))
        norms = jnp.sqrt(jnp.sum(lead.images**2, axis=1))
        images = lead.images / jnp.where(norms > 0, norms, 1)[:, None]
        u, v = (images, lead.vectors) if tall else (lead.vectors, images)
        v, u = fix_signs(v, u)
        return SVD(u.T, norms / lead.unit, v), is_rounding(norms), lead.finite

    return over_stack(single, [working(a)], core=2)


@jax.jit
def _residual(a: Array, s: Array, left: Array, right: Array) -> Array:
    """|A - L R|, in a unit in which its squares cannot leave the range.

    Right vectors are orthonormal and left ones their images, so |A|^2 is the sum of both parts';
    where too few digits are left of that difference, the residual is that of the matrices.
    """

    def single(a: Array, s: Array, left: Array, right: Array) -> Array:
        unit = jnp.sqrt(jnp.max(jnp.sum(right**2, axis=1))) * jnp.max(jnp.abs(left))
        unit = jnp.where(unit > 0, unit, jnp.max(jnp.abs(a)))
        unit = jnp.where(unit > 0, unit, 1)
        energy = squares(a, 1 / unit)
        cheap = energy - jnp.sum((s / unit) ** 2)
        direct = lambda: missed(a, right / unit, (left, None), 1 / unit)
        return jnp.sqrt(lax.cond(cheap > CANCELS * energy, lambda: cheap, direct)) * unit

    return over_stack(single, [working(a), s, left, right], core=2)


@functools.partial(jax.jit, static_argnames=("exact",))
def _values(a: Array, *, exact: bool) -> Array:
    def single(a: Array) -> Array:
        problem, finite = Normal(a if a.shape[0] >= a.shape[1] else a.T).scaled(a)
        if exact:
            clean = jnp.where(finite, a * problem.unit, 0)
            return jnp.linalg.svd(clean, compute_uv=False) / problem.unit
        gram = jnp.where(finite, problem.gram(), 0)
        energy = jnp.linalg.eigvalsh(gram, symmetrize_input=False)[::-1]
        return jnp.sqrt(jnp.maximum(energy, 0)) / problem.unit

    return over_stack(single, [working(a)], core=2)
