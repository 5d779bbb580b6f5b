"""Data-aware SVD: the best low-rank factors under a metric on the rows, the columns, or both."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from lrjax.errors import ShapeError, message
from lrjax.linalg.gram import GramEigh
from lrjax.linalg.info import Info
from lrjax.linalg.normal import Normal
from lrjax.linalg.policy import Accuracy, Method, choose
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.truncated import (
    check_method,
    check_rank,
    is_rounding,
    matrix_shape,
    settle,
    status,
)
from lrjax.linalg.whitening import sqrt_psd, whiten

WIDE = 0.8
"""A Gram eigenproblem moves to the rows' side below this m / n: there it needs the root of S, a
second eigenproblem of order m, so that n^3 must outweigh 2 m^3."""


def weighted_svd(
    w: Float[Array, "*S m n"],
    rank: int,
    *,
    rows: Float[Array, "..."] | None = None,
    cols: Float[Array, "..."] | None = None,
    key: Array | None = None,
    accuracy: Accuracy = Accuracy.DEFAULT,
    method: Method | None = None,
) -> tuple[Float[Array, "*S m r"], Float[Array, "*S r n"], Float[Array, "*S r"], Info]:
    """The minimiser of tr(D' rows D cols), D = W - left @ right, at a rank.

    One side: V = leading eigenvectors of W' rows W gives left = W V, right = V', with no inverse
    and no root, so singular Grams (fewer samples than inputs) are exact. It is the optimum that
    DRONE, AFM, SVD-LLM (arXiv:2403.07378), its V2 (arXiv:2503.12340) and Swift-SVD
    (arXiv:2604.01609) share. Columns alone are the same problem transposed. Two sides: W cols^.5
    takes W's place and `right` is V' cols^-.5, a pseudo-inverse with a relative floor (KFAC-SVD).
    Gradients are stopped.

    Args:
      w: matrices W.
      rank: from 1 to min(m, n).
      rows: second moment of the inputs: full [*S, m, m], its diagonal [*S, m], or None.
      cols: second moment of the output gradients: full [*S, n, n], diagonal [*S, n], or None.
      key: randomness; None is a fixed key. The same key gives the same bits.
      accuracy: how near the optimum.
      method: overrides the policy.

    Returns:
      left, right, the singular values s [*S, r] of rows^.5 W cols^.5 (the loss of dropping the
      i-th is s_i^2), and Info whose residual is sqrt(tr(D' rows D cols)), from D itself.

    Raises:
      RankError: rank below 1 or above min(m, n).
      ShapeError: a side does not fit its dimension of `w`.
    """
    m, n = matrix_shape(w)
    check_rank(rank, (m, n))
    check_side(rows, w.shape[:-2], m, "rows")
    check_side(cols, w.shape[:-2], n, "cols")
    if rows is None and cols is not None:
        flipped = jnp.swapaxes(w, -1, -2)
        right, left, s, info = weighted_svd(
            flipped, rank, rows=cols, key=key, accuracy=accuracy, method=method
        )
        return jnp.swapaxes(left, -1, -2), jnp.swapaxes(right, -1, -2), s, info
    method = method or choose((m, n), rank, accuracy=accuracy, backend=jax.default_backend())
    check_method(method, rank, (m, n))
    key = jax.random.key(0) if key is None else key
    w, rows, cols = lax.stop_gradient((w, rows, cols))
    left, right, s, deficient, finite = _solve(w, rows, cols, key, rank=rank, method=method)
    info = Info(
        residual=weighted_residual(w, left, right, rows=rows, cols=cols),
        iterations=jnp.full(w.shape[:-2], method.iterations, jnp.int32),
        status=status(finite, deficient),
    )
    return left, right, s, info


def weighted_residual(
    w: Float[Array, "*S m n"],
    left: Float[Array, "*S m r"],
    right: Float[Array, "*S r n"],
    *,
    rows: Float[Array, "..."] | None = None,
    cols: Float[Array, "..."] | None = None,
) -> Float[Array, "*S"]:
    """sqrt(tr(D' rows D cols)) of D = W - left @ right, formed: no cancellation."""
    return _residual(*lax.stop_gradient((w, left, right, rows, cols)))


def weighted_spectrum(
    w: Float[Array, "*S m n"],
    rows: Float[Array, "..."] | None = None,
    cols: Float[Array, "..."] | None = None,
) -> Float[Array, "*S k"]:
    """All singular values of rows^.5 W cols^.5, falling: one eigen-solve prices every rank.

    The least loss at rank r is the sum of s_i^2 over i > r. Values below 3e-4 s_1 are rounding;
    zeros where the input is not finite.

    Raises:
      ShapeError: a side does not fit its dimension of `w`.
    """
    m, n = matrix_shape(w)
    check_side(rows, w.shape[:-2], m, "rows")
    check_side(cols, w.shape[:-2], n, "cols")
    return _spectrum(*lax.stop_gradient((w, rows, cols)))


def check_side(side: Array | None, stack: tuple[int, ...], size: int, name: str) -> None:
    """ShapeError unless a side is None, a diagonal [*S, d] or a matrix [*S, d, d]."""
    if side is None or side.shape in ((*stack, size), (*stack, size, size)):
        return
    raise ShapeError(
        message(
            got=f"{name} of shape {side.shape}",
            expected=f"{(*stack, size)} or {(*stack, size, size)}",
            todo="Give the second moment of that side, its diagonal, or None.",
        )
    )


@functools.partial(jax.jit, static_argnames=("rank", "method"))
def _solve(w, rows, cols, key, *, rank: int, method: Method):
    wide = isinstance(method, GramEigh) and w.shape[-2] < WIDE * w.shape[-1]

    def single(w: Array, rows: Array | None, cols: Array | None):
        rows, cols, units = _normalised(rows, cols)
        inverse = None
        if wide:
            # The shorter side, A = rows^.5 W: u of A cols A', then right = u' A / s and
            # left = W cols right'. No root of cols, the larger moment, is needed.
            lead = method.leading(Normal(_weigh_root(w, rows).T, cols), rank, key)
            weigh = lambda x: x if cols is None else _times(x, cols)
            vectors = _orthonormal_under(lead.images, weigh)
            images = Normal(w, None, lead.unit).image(weigh(vectors))
            lead = lead._replace(vectors=vectors, images=images)
        else:
            whitened, inverse = _whiten_cols(w, cols)
            lead = method.leading(Normal(whitened, rows), rank, key)
        lead = settle(lead)
        right = lead.vectors if inverse is None else _times(lead.vectors, inverse)
        right = jnp.where(lead.finite, right, 0)
        s = jnp.where(lead.finite, jnp.sqrt(lead.energy) / lead.unit, 0)
        deficient = is_rounding(lead.energy)
        return lead.images.T / lead.unit, right, s * units, deficient, lead.finite

    return over_stack(single, [working(w), _working(rows), _working(cols)], core=2)


@jax.jit
def _residual(w, left, right, rows, cols):
    def single(w: Array, left: Array, right: Array, rows: Array | None, cols: Array | None):
        rows, cols, units = _normalised(rows, cols)
        unit = jnp.max(jnp.abs(w))
        unit = jnp.where(unit > 0, unit, 1)
        delta = (w - dot(left, right)) / unit
        weighted = Normal(delta, rows).weigh(delta.T).T
        if cols is not None:
            weighted = _times(weighted, cols)
        total = jnp.sum(jnp.sum(weighted * delta, axis=1))
        return jnp.sqrt(jnp.maximum(total, 0)) * unit * units

    arrays = [*map(working, (w, left, right)), _working(rows), _working(cols)]
    return over_stack(single, arrays, core=2)


@jax.jit
def _spectrum(w, rows, cols):
    def single(w: Array, rows: Array | None, cols: Array | None):
        rows, cols, units = _normalised(rows, cols)
        if w.shape[0] < w.shape[1]:
            # The shorter side takes the root; the larger moment enters the Gram as it is.
            w, rows, cols = _weigh_root(w, rows).T, cols, None
        whitened, _ = _whiten_cols(w, cols)
        problem, finite = Normal(whitened, rows).scaled(whitened)
        gram = problem.gram()
        finite &= jnp.isfinite(jnp.sum(gram))
        values = jnp.linalg.eigvalsh(jnp.where(finite, gram, 0), symmetrize_input=False)[::-1]
        s = jnp.sqrt(jnp.maximum(values, 0))[: min(w.shape)]
        return jnp.where(finite, s / problem.unit * units, 0)

    return over_stack(single, [working(w), _working(rows), _working(cols)], core=2)


def _working(side: Array | None) -> Array | None:
    return None if side is None else working(side)


def _normalised(rows: Array | None, cols: Array | None):
    """Both sides with largest diagonal entry one, and the root of what that divided out."""
    units = jnp.ones(())
    sides = []
    for side in (rows, cols):
        if side is not None:
            peak = jnp.max(jnp.abs(side if side.ndim == 1 else jnp.diagonal(side)))
            peak = jnp.where(peak > 0, peak, 1)
            side, units = side / peak, units * jnp.sqrt(peak)
        sides.append(side)
    return *sides, units


def _whiten_cols(w: Array, cols: Array | None) -> tuple[Array, Array | None]:
    """W cols^.5, and cols^-.5 (a matrix or a diagonal) over what is above the floor."""
    if cols is None:
        return w, None
    if cols.ndim == 1:
        roots = jnp.sqrt(jnp.maximum(cols, 0))
        return w * roots, jnp.where(roots > 0, 1 / jnp.where(roots > 0, roots, 1), 0)
    clean = jnp.where(jnp.isfinite(jnp.sum(cols)), cols, jnp.nan)
    roots, inverse = whiten(clean)
    return dot(w, roots), inverse


def _orthonormal_under(images: Array, weigh: Callable[[Array], Array]) -> Array:
    """Rows X of the same span with X cols X' = I, falling ones in turn; zeros where one adds none.

    They are orthogonal already but for rounding, which is all that is left of the images of
    vanishing singular values: scaled to length one it would lean on the leading ones.
    """
    eps = float(jnp.finfo(images.dtype).eps)
    energy = jnp.sum(images * weigh(images), axis=1)
    kept = energy > eps**2 * energy[0]
    rows = images * jnp.where(kept, lax.rsqrt(jnp.where(kept, energy, 1)), 0)[:, None]
    gram = dot(rows, weigh(rows).T)
    gram = jnp.where(jnp.all(jnp.isfinite(gram)), gram, 0) + jnp.diag(jnp.where(kept, 0.0, 1.0))
    lower = jnp.linalg.cholesky(gram + 4 * eps * jnp.eye(len(rows), dtype=gram.dtype))
    new = kept & (jnp.diagonal(lower) ** 2 > 128 * eps)
    rows = lax.linalg.triangular_solve(lower, rows, left_side=True, lower=True)
    return jnp.where(new[:, None], rows, 0)


def _weigh_root(w: Array, rows: Array | None) -> Array:
    """rows^.5 W."""
    if rows is None:
        return w
    if rows.ndim == 1:
        return jnp.sqrt(jnp.maximum(rows, 0))[:, None] * w
    return dot(sqrt_psd(rows), w)


def _times(x: Array, side: Array) -> Array:
    return x * side if side.ndim == 1 else dot(x, side)
