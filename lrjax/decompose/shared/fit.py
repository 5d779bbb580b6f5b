"""The shared-basis solver: the pooled optimum, then alternating least squares under own metrics."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.errors import RankError, message
from lrjax.formats.shared_basis import SharedBasis
from lrjax.linalg.driver import iterate
from lrjax.linalg.info import Info, Status
from lrjax.linalg.orthonormal import fix_signs
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import to_unit
from lrjax.linalg.whitening import solve_ridge, sqrt_psd, whiten

SWEEPS = 8
"""Most sweeps of alternating least squares."""

CG_STEPS = 5
"""Steps of conjugate gradients for one basis: a sweep only has to go down, not to finish."""

RIDGE = 1e-7, 1e-3
"""Relative ridges of the normal equations: one that float32 can hardly hold, and one that it can
where rounding left a matrix indefinite."""

DIM = 1e-6
"""Eigenvalues below this share of the largest are rounding in float32."""


class Bases(NamedTuple):
    """The two bases [m, r] and [q, n], either may be None, and the cores [S, r, q]."""

    left: Array | None
    right: Array | None
    core: Array


def shared_basis(
    w: Float[Array, "*B S m n"],
    rank: tuple[int, int],
    *,
    rows: Array | None = None,
    cols: Array | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = 1e-3,
) -> tuple[SharedBasis, Info]:
    """Bases shared by S matrices: min sum_s tr(D_s' A_s D_s G_s), D_s = W_s - left core_s right.

    One basis starts from the leading eigenvectors under the entries' mean metric (all columns, or
    rows, side by side: Basis Sharing, arXiv:2410.03765), and is the optimum where the entries have
    one metric in common. Where each has its own, alternating least squares goes on from there:
    cores in closed form, bases by preconditioned conjugate gradients; the loss never rises. Two
    bases start from one of each (HOSVD) and alternate likewise.

    Args:
      w: matrices; the last stack axis shares.
      rank: sizes of the left and of the right basis; 0 for none.
      rows: A_s, second moments of the inputs, [*B, S, m, m], diagonals [*B, S, m], or None.
      cols: G_s, of the output gradients, likewise.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends them.

    Raises:
      RankError: a rank is out of range, or both are 0.
    """
    check_rank(w.shape[-3:], rank)
    arrays = [
        working(lax.stop_gradient(w)),
        *(None if x is None else working(x) for x in (rows, cols)),
    ]
    core, left, right, info = _solve(*arrays, sweeps, tol, rank=tuple(rank))
    return SharedBasis(core, left, right).astype(w.dtype), info


def check_rank(shape: tuple[int, ...], rank: tuple[int, int]) -> None:
    """RankError unless the ranks of the two bases are possible for [S, m, n]."""
    count, m, n = shape
    r, q = rank
    most = (min(m, count * (q or n)), min(n, count * (r or m)))
    if (r, q) == (0, 0) or not (0 <= r <= most[0] and 0 <= q <= most[1]):
        got = f"rank {rank} for {count} matrices {m} x {n}"
        expected = f"at most {most}, and 0 for one side at most"
        raise RankError(message(got=got, expected=expected, todo="Change the rank."))


@functools.partial(jax.jit, static_argnames=("rank",))
def _solve(w, rows, cols, sweeps, tol, *, rank: tuple[int, int]):
    def single(w: Array, rows: Array | None, cols: Array | None) -> Any:
        w, unit, finite = to_unit(w)
        (rows, a), (cols, g) = _unit(rows), _unit(cols)
        finite &= jnp.isfinite(a) & jnp.isfinite(g)
        state = refit(w, rows, cols, *start(w, rows, cols, rank))
        # One basis whose own side has no metric, or one for all, is at the optimum already.
        optimal = (rank[1] == 0 and rows is None) or (rank[0] == 0 and cols is None)
        step = lambda state, _: _step(w, rows, cols, state)
        state, progress = iterate(
            step, state, jnp.sum(losses(w, rows, cols, state)),
            steps=jnp.where(optimal, 0, sweeps), tol=tol,
        )  # fmt: skip
        left, right, core = _normalised(state)
        missed = jnp.sqrt(jnp.maximum(losses(w, rows, cols, state), 0)) * jnp.sqrt(a * g) / unit
        settled = progress.converged | optimal | (sweeps == 0)
        status = jnp.where(settled, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        status = jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32)
        clean = lambda x: None if x is None else jnp.where(finite, x, 0)
        every = lambda x: jnp.broadcast_to(x, missed.shape)
        info = Info(jnp.where(finite, missed, jnp.nan), every(progress.steps), every(status))
        return clean(core / unit), clean(left), clean(right), info

    return over_stack(single, [w, rows, cols], core=3)


def start(w: Array, rows: Array | None, cols: Array | None, rank: tuple[int, int]) -> Any:
    """Bases [m, r] and [q, n] under the entries' mean metric, leading directions first."""
    left = right = None
    if rank[0]:
        left = pooled(w, rows, cols)[:, : rank[0]]
    if rank[1]:
        right = pooled(jnp.swapaxes(w, 1, 2), cols, rows)[:, : rank[1]].T
    return left, right


def pooled(w: Array, rows: Array | None, cols: Array | None) -> Float[Array, "m m"]:
    """Directions A^-.5 u, u the eigenvectors of A^.5 M A^.5, M = sum_s W_s G_s W_s', A = mean A_s.

    As M A^.5 u / eigenvalue, which needs no inverse; zero where the eigenvalue is rounding.
    """
    root = None if rows is None else _root(jnp.mean(rows, axis=0))
    inner = jnp.einsum("smn,skn->mk", times(w, cols), w, precision="highest")
    half = inner if root is None else inner * root if root.ndim == 1 else dot(inner, root)
    whole = half if root is None else root[:, None] * half if root.ndim == 1 else dot(root, half)
    values, vectors = jnp.linalg.eigh(whole)
    values, vectors = values[::-1], fix_signs(vectors[:, ::-1].T)[0].T
    if root is None:
        return vectors
    kept = values > DIM * values[0]
    return jnp.where(kept, dot(half, vectors) / jnp.where(kept, values, 1), 0)


def refit(w, rows, cols, left: Array | None, right: Array | None) -> Bases:
    """The best cores of given bases: two small least-squares problems an entry."""
    core = w
    if left is not None:
        weighted = weigh(rows, jnp.broadcast_to(left, (w.shape[0], *left.shape)))
        core = _solve_normal(dot(left.T, weighted), dot(jnp.swapaxes(weighted, 1, 2), core))
    if right is not None:
        weighted = weigh(cols, jnp.broadcast_to(right.T, (w.shape[0], *right.T.shape)))
        target = jnp.swapaxes(dot(core, weighted), 1, 2)
        core = jnp.swapaxes(_solve_normal(dot(right, weighted), target), 1, 2)
    return Bases(left, right, core)


def losses(w, rows, cols, state: Bases) -> Float[Array, " S"]:
    """tr(D' A D G) of each entry."""
    delta = w - expand(state)
    return jnp.sum(times(weigh(rows, delta), cols) * delta, axis=(1, 2))


def expand(state: Bases) -> Float[Array, "S m n"]:
    """The entries that the bases and cores stand for, left core_s right."""
    core = state.core if state.left is None else dot(state.left, state.core)
    return core if state.right is None else dot(core, state.right)


def _step(w, rows, cols, state: Bases) -> tuple[Bases, Array]:
    """One sweep: each basis by conjugate gradients, then the cores."""
    left, right, core = state
    if left is not None:
        images = core if right is None else dot(core, right)
        left = _improve(left, w, rows, cols, images)
        left, right, core = refit(w, rows, cols, left, right)
    if right is not None:
        images = core if left is None else dot(left, core)
        flip = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
        right = _improve(right.T, flip(w), cols, rows, flip(images)).T
        left, right, core = refit(w, rows, cols, left, right)
    state = Bases(left, right, core)
    return state, jnp.sum(losses(w, rows, cols, state))


def _improve(left: Array, w: Array, rows, cols, images: Float[Array, "S r n"]) -> Array:
    """Conjugate gradients on sum_s A_s U (C_s G_s C_s') = sum_s A_s W_s G_s C_s', from `left`."""
    weighted = jnp.swapaxes(times(images, cols), 1, 2)
    inner = dot(images, weighted)
    apply = lambda u: jnp.sum(weigh(rows, dot(u, inner)), axis=0)
    inverse = None if rows is None else _inverse_root(jnp.mean(rows, axis=0))
    total = jnp.sum(inner, axis=0)

    def precondition(x: Array) -> Array:
        if inverse is not None:
            squared = (
                inverse[:, None] ** 2 * x if inverse.ndim == 1 else dot(inverse, dot(inverse, x))
            )
            x = squared
        return _solve_normal(total, x.T).T

    residual = jnp.sum(weigh(rows, dot(w, weighted)), axis=0) - apply(left)
    z = precondition(residual)

    def step(_, carry):
        u, residual, direction, energy = carry
        image = apply(direction)
        curve = jnp.sum(direction * image)
        length = jnp.where(curve > 0, energy / jnp.where(curve > 0, curve, 1), 0)
        u, residual = u + length * direction, residual - length * image
        z = precondition(residual)
        after = jnp.sum(residual * z)
        ratio = jnp.where(energy > 0, after / jnp.where(energy > 0, energy, 1), 0)
        return u, residual, z + ratio * direction, after

    return lax.fori_loop(0, CG_STEPS, step, (left, residual, z, jnp.sum(residual * z)))[0]


def _normalised(state: Bases) -> Bases:
    """Basis vectors of unit length, their sizes in the cores."""
    left, right, core = state
    if left is not None:
        sizes = jnp.sqrt(jnp.sum(left**2, axis=0))
        sizes = jnp.where(sizes > 0, sizes, 1)
        left, core = left / sizes, core * sizes[:, None]
    if right is not None:
        sizes = jnp.sqrt(jnp.sum(right**2, axis=1))
        sizes = jnp.where(sizes > 0, sizes, 1)
        right, core = right / sizes[:, None], core * sizes
    return Bases(left, right, core)


def _unit(side: Array | None) -> tuple[Array | None, Array]:
    """A side in the unit of its largest entry, and the unit."""
    if side is None:
        return None, jnp.ones(())
    peak = jnp.max(jnp.abs(side))
    usable = jnp.isfinite(peak) & (peak > 0)
    return jnp.where(usable, side / jnp.where(usable, peak, 1), 0), jnp.where(peak == 0, 1, peak)


def _solve_normal(gram: Array, target: Array) -> Array:
    """Normal equations with the first ridge that leaves them definite."""
    first, second = (solve_ridge(gram, target, ridge) for ridge in RIDGE)
    usable = jnp.all(jnp.isfinite(first), axis=(-2, -1), keepdims=True)
    return jnp.where(usable, first, jnp.where(jnp.isfinite(second), second, 0))


def _root(mean: Array) -> Array:
    return sqrt_psd(mean) if mean.ndim == 2 else jnp.sqrt(jnp.maximum(mean, 0))


def _inverse_root(mean: Array) -> Array:
    if mean.ndim == 2:
        return whiten(mean)[1]
    return jnp.where(mean > 0, lax.rsqrt(jnp.where(mean > 0, mean, 1)), 0)


def weigh(side: Array | None, x: Float[Array, "S d k"]) -> Array:
    """A_s X_s."""
    if side is None:
        return x
    return side[:, :, None] * x if side.ndim == 2 else dot(side, x)


def times(x: Float[Array, "S k d"], side: Array | None) -> Array:
    """X_s G_s."""
    if side is None:
        return x
    return x * side[:, None, :] if side.ndim == 2 else dot(x, side)
