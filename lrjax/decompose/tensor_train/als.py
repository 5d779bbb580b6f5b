"""Alternating least squares for tensor trains under any metric, core by core."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.tensor_train import two_site
from lrjax.decompose.tensor_train.cores import (
    Digits,
    Train,
    check_digits,
    check_ranks,
    interleave,
    join,
    separate,
)
from lrjax.decompose.tensor_train.local import improve
from lrjax.decompose.tensor_train.svd import (
    finish,
    pairs,
    resized,
    right_orthonormal,
    status,
    weight,
)
from lrjax.formats.tensor_train import TensorTrain
from lrjax.linalg import Info
from lrjax.linalg.driver import iterate
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import to_unit, total
from lrjax.metrics import Metric

SWEEPS = 8
"""Most sweeps, each once to the right and once to the left."""

PAIRED = 2
"""Two-site sweeps before single-site ones take over: the first turn the bonds, but every cut after
a pair is optimal without the metric only, and under one the others go on falling."""

TOL = 1e-3
"""Relative decrease of the loss below which a sweep counts as still."""


def tt_als(
    w: Float[Array, "*S M N"],
    init: TensorTrain,
    *,
    metric: Metric | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
    ranks: Sequence[int] | None = None,
) -> tuple[TensorTrain, Info]:
    """A train of the ranks of `init` that lowers tr(D' rows D cols), D = W - W', core by core.

    With the frames left and right of core k orthonormal (L, R), its best value solves
    L'A(L G R)R' = L'A(W)R', A the metric: a few conjugate-gradient steps from the present core,
    preconditioned by the mean weight of each digit. They cannot raise the loss, nor can a sweep:
    the objective is monotone, and the best iterate is what comes back. Padding weighs nothing.

    With `ranks`, the first sweeps are two-site ones (`two_site.sweep`): neighbours are solved
    together and cut apart again at these ranks, which may be higher or lower than those of `init`.
    A pair sees directions that no single core can turn to; it costs a digit times more.

    Args:
      w: matrices, stack axes leading.
      init: a train for the same matrices, e.g. from `tt_svd`.
      metric: what error means; None is the Frobenius norm.
      sweeps: most sweeps.
      tol: relative decrease of the loss that ends the run; may be traced.
      ranks: of the result, by two-site sweeps first; None keeps those of `init`, core by core.

    Returns:
      The weight and Info; the residual is the square root of the loss.

    Raises:
      ShapeError: `init` is of another shape.
      RankError: the ranks of `init`, or those asked for, are more than its digits can use.
    """
    rows, cols = init.modes
    check_digits(w, rows, cols)
    check_ranks(pairs(rows, cols), init.rank)
    if ranks is not None:
        init = resized(init, check_ranks(pairs(rows, cols), ranks))
    sides = (metric or Metric()).broadcast(w.shape[:-2]).arrays()
    cores, info = _solve(
        lax.stop_gradient(w), *sides, init.cores, tol, sweeps,
        rows=rows, cols=cols, paired=ranks is not None,
    )  # fmt: skip
    return weight(cores, w), info


@functools.partial(jax.jit, static_argnames=("rows", "cols", "paired"))
def _solve(w, row_side, col_side, start, tol, sweeps, *, rows: Digits, cols: Digits, paired: bool):
    def once(train: Train, i: Array, *problem: Any) -> Train:
        single = lambda train: _sweep(train, *problem)
        if not paired:
            return single(train)
        return lax.cond(i < PAIRED, lambda train: two_site.sweep(train, *problem), single, train)

    def single(w: Array, p: Array | None, q: Array | None, *cores: Array) -> tuple[Any, Info]:
        x, unit, finite = to_unit(interleave(w, rows, cols))
        sides = [s for s in (p, q) if s is not None]
        peaks = [jnp.max(jnp.abs(s)) for s in sides]
        for side in sides:
            finite &= jnp.all(jnp.isfinite(side))
        levels = [jnp.where(finite & (peak > 0), peak, 1) for peak in peaks]
        p, q = _fill(
            (p, q), [jnp.where(finite, s / l, 0) for s, l in zip(sides, levels, strict=True)]
        )
        x = jnp.where(finite, x, 0)
        weigh, means = _metric(w.shape, rows, cols, p, q)
        flat = [c.reshape(c.shape[0], -1, c.shape[-1]) for c in cores]
        train = right_orthonormal((*flat[:-1], jnp.where(finite, flat[-1] * unit, 0)))

        def loss(train: Train) -> Array:
            miss = x - join(train).reshape(x.shape)
            return total(miss * weigh(miss))

        target = weigh(x)
        step = lambda train, i: (moved := once(train, i, target, weigh, means), loss(moved))
        floor = 1e-13 * total(x * target)
        train, progress = iterate(step, train, loss(train), steps=sweeps, tol=tol, goal=floor)
        scale = functools.reduce(jnp.multiply, map(jnp.sqrt, levels), 1 / unit)
        residual = jnp.sqrt(jnp.maximum(progress.objective, 0)) * scale
        settled = progress.converged | (sweeps == 0) | (tol <= 0)
        code = status(finite, jnp.zeros((), bool), settled)
        info = Info(jnp.where(finite, residual, jnp.nan), progress.steps, code)
        return finish(train, unit, finite, rows, cols), info

    arrays = [working(w), *(None if s is None else working(s) for s in (row_side, col_side))]
    return over_stack(single, [*arrays, *map(working, start)], core=2)


def _fill(pattern: tuple[Array | None, ...], present: list[Array]) -> list[Array | None]:
    rest = iter(present)
    return [None if x is None else next(rest) for x in pattern]


def _metric(shape, rows: Digits, cols: Digits, p: Array | None, q: Array | None) -> Any:
    """X -> A(X) in the order of digit pairs, and the mean weight of each pair, core by core.

    Diagonal sides are one product with broadcast weights; a full side is applied to the matrix.
    """
    m, n = shape
    ones = lambda k: jnp.ones(k, jnp.float32)
    diagonals = [
        ones(k) if s is None else s if s.ndim == 1 else jnp.maximum(jnp.diagonal(s), 0)
        for s, k in ((p, m), (q, n))
    ]
    outer = lambda a, b: interleave(a[:, None] * b[None, :], rows, cols)
    weights = outer(*diagonals)
    others = lambda k: tuple(j for j in range(len(rows)) if j != k)
    means = [jnp.mean(weights, axis=others(k)) for k in range(len(rows))]
    full = [s is not None and s.ndim == 2 for s in (p, q)]
    if p is None and q is None and m * n == math.prod((*rows, *cols)):
        return lambda x: x, means
    if not any(full):
        return lambda x: x * weights, means

    def weigh(x: Array) -> Array:
        y = separate(x, rows, cols)[:m, :n]
        y = dot(p, y) if full[0] else y * diagonals[0][:, None]  # pyright: ignore
        y = dot(y, q) if full[1] else y * diagonals[1]  # pyright: ignore
        return interleave(y, rows, cols)

    return weigh, means


def _sweep(train: Train, target: Array, weigh: Callable[[Array], Array], means: Any) -> Train:
    """Every core once to the right and, but for the last, once to the left."""
    d = len(train)
    right = [jnp.ones((1, 1, 1))] * d
    for k in range(d - 1, 0, -1):
        right[k - 1] = join((train[k], right[k]))
    left, cores = [jnp.ones((1, 1, 1))] * d, list(train)
    for k in range(d):
        cores[k] = improve(cores[k], left[k], right[k], target, weigh, means[k])
        if k < d - 1:
            core, after = cores[k], cores[k + 1]
            frame, carry = jnp.linalg.qr(core.reshape(-1, core.shape[-1]))
            cores[k] = frame.reshape(*core.shape[:2], -1)
            cores[k + 1] = dot(carry, after.reshape(after.shape[0], -1)).reshape(
                -1, *after.shape[1:]
            )
            left[k + 1] = join((left[k], cores[k]))
    for k in range(d - 1, 0, -1):
        core, before = cores[k], cores[k - 1]
        frame, carry = jnp.linalg.qr(core.reshape(core.shape[0], -1).T)
        cores[k] = frame.T.reshape(-1, *core.shape[1:])
        cores[k - 1] = dot(before.reshape(-1, before.shape[-1]), carry.T).reshape(
            *before.shape[:2], -1
        )
        right[k - 1] = join((cores[k], right[k]))
        cores[k - 1] = improve(cores[k - 1], left[k - 1], right[k - 1], target, weigh, means[k - 1])
    return tuple(cores)
