"""Where CP starts: a Tucker core, random factors, and a generalised eigenvalue problem."""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.draw import normal
from lrjax.linalg.khatri_rao import Factors
from lrjax.linalg.policy import EIGH_SIZE
from lrjax.linalg.stack import dot
from lrjax.linalg.tensor import project, unfold
from lrjax.linalg.truncated import truncated_svd

POWER_STEPS = 20


def core(
    t: Float[Array, "*d"], rank: int, key: Array
) -> tuple[Float[Array, "*q"], tuple[Array | None, ...]]:
    """T compressed to at most `rank` in every mode, and the bases [d_k, q_k] (None: unchanged).

    R rank-one terms span at most R dimensions of each mode, so an exact decomposition of T is
    one of its core, which is smaller by a large factor.
    """
    bases: list[Array | None] = []
    for k, size in enumerate(t.shape):
        rest = math.prod(t.shape) // size
        few = min(rank, rest)
        if few >= size:
            bases.append(None)
        elif size <= EIGH_SIZE and size <= rest:
            matrix = unfold(t, k)
            bases.append(jnp.linalg.eigh(dot(matrix, matrix.T))[1][:, size - few :])
        else:
            bases.append(truncated_svd(unfold(t, k), few, key=key)[0].u)
    modes = [k for k, basis in enumerate(bases) if basis is not None]
    return project(t, bases, modes), tuple(bases)  # pyright: ignore


def expand(factors: Factors, bases: tuple[Array | None, ...]) -> Factors:
    """Factors [R, q_k] of the core as factors [R, d_k] of the tensor."""
    pairs = zip(factors, bases, strict=True)
    return tuple(f if basis is None else dot(f, basis.T) for f, basis in pairs)


def random(key: Array, shape: tuple[int, ...], rank: int, count: int) -> Factors:
    """`count` sets of Gaussian factors, [count, R, d_k], whose terms have norm about one."""
    # One draw for all modes compiles faster than three.
    drawn = normal(key, (count, rank, sum(shape)))
    ends = itertools.accumulate(shape)
    return tuple(drawn[..., e - d : e] / math.sqrt(d) for d, e in zip(shape, ends, strict=True))


def has_eigen_start(shape: tuple[int, ...], rank: int) -> bool:
    """Whether `eigen` applies: two modes of a core hold R independent directions."""
    return len(shape) > 2 and sum(size == rank for size in shape) >= 2


def eigen(t: Float[Array, "*q"], rank: int, key: Array) -> Factors:
    """The exact factors of a generic tensor of R terms with two modes of size R.

    Two random combinations of slices are S_i = A D_i B', so S_1 S_2^-1 has A's columns as
    eigenvectors (Leurgans, Ross, Abel, 1993); the other modes are the rank-one rows of A^-1 T.
    Wherever the eigenvectors are complex or not defined, or the backend has no eigensolver for
    general matrices, the result is an arbitrary start.
    """
    first, second = [k for k, size in enumerate(t.shape) if size == rank][:2]
    cube = jnp.moveaxis(t, (first, second), (0, 1)).reshape(rank, rank, -1)
    mix = normal(key, (cube.shape[2], 2))
    slices = jnp.moveaxis(jnp.tensordot(cube, mix, 1, precision="highest"), 2, 0)
    pencil = jnp.linalg.solve(slices[1].T, slices[0].T).T
    vectors = jax.lax.platform_dependent(
        jnp.where(jnp.all(jnp.isfinite(pencil)), pencil, jnp.eye(rank)),
        cpu=lambda m: jnp.linalg.eig(m)[1].real,
        default=lambda m: jnp.linalg.qr(m)[0],
    )
    rows = jnp.linalg.solve(vectors + 1e-7 * jnp.eye(rank), unfold(t, first))
    sizes = [size for k, size in enumerate(t.shape) if k != first]
    factors = _rank_one(jnp.nan_to_num(rows), sizes)
    factors.insert(first, vectors.T)
    return tuple(jnp.nan_to_num(f) for f in factors)


def _rank_one(rows: Float[Array, "R d"], sizes: list[int]) -> list[Array]:
    """The leading rank-one tensor of every row, by power iteration mode after mode."""
    factors = []
    for size in sizes[:-1]:
        matrix = rows.reshape(rows.shape[0], size, -1)
        gram = jnp.einsum("rik,rjk->rij", matrix, matrix, precision="highest")
        gram /= jnp.maximum(jnp.trace(gram, axis1=1, axis2=2), 1e-30)[:, None, None]

        def power(_, u, gram=gram):
            u = jnp.einsum("rij,rj->ri", gram, u, precision="highest")
            return u / jnp.maximum(jnp.linalg.norm(u, axis=1, keepdims=True), 1e-30)

        u = jax.lax.fori_loop(0, POWER_STEPS, power, jnp.sum(gram, axis=2))
        rows = jnp.einsum("ri,rik->rk", u, matrix, precision="highest")
        factors.append(u)
    return [*factors, rows]
