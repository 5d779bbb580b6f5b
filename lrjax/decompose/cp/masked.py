"""CP under element-wise weights; weights 0 and 1 are tensor completion."""

import functools
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.cp import start
from lrjax.decompose.cp.als import balance
from lrjax.decompose.cp.fit import CPInfo, canonical
from lrjax.decompose.weighted.half_step import cg_rows
from lrjax.errors import ShapeError, message
from lrjax.formats.cp import CP
from lrjax.linalg.driver import iterate
from lrjax.linalg.info import Status
from lrjax.linalg.khatri_rao import Factors, compose, khatri_rao
from lrjax.linalg.stack import over_stack, working
from lrjax.linalg.tensor import unfold

CG_STEPS = 3


def weighted_cp(
    w: Float[Array, "*d"],
    weights: Float[Array, "..."],
    rank: int,
    *,
    ridge: float | Array = 0.0,
    key: Array | None = None,
    starts: int = 8,
    sweeps: int | Array = 500,
    tol: float | Array = 1e-5,
) -> tuple[CP, CPInfo]:
    """A sum of rank-one tensors near W where it matters: min sum F (W - X)^2 + ridge sum |f_k|^2.

    Each mode in turn is an element-weighted least-squares problem with the Khatri-Rao product of
    the others, solved as in `weighted_low_rank`; sweeps are extrapolated by Nesterov's rule, and a
    sweep that rose is dropped with its momentum. The best of `starts` random starts is returned.

    Args:
      w: one tensor; entries without weight may be anything, NaN included.
      weights: F >= 0, of W's shape.
      rank: number of terms.
      ridge: penalty on the factors, in the unit of the mean weight, for a W of largest entry one.
      key: randomness; the same key gives the same bits.
      starts: random starts.
      sweeps: most sweeps of each start.
      tol: relative decrease of the objective in a sweep at which it has settled.

    Raises:
      ShapeError: the weights have another shape.
    """
    if weights.shape != w.shape:
        todo = "Give one weight for every entry."
        got = f"weights of shape {weights.shape}"
        raise ShapeError(message(got=got, expected=f"shape {w.shape}", todo=todo))
    key = jax.random.key(0) if key is None else key
    w, weights = (jax.lax.stop_gradient(working(x)) for x in (w, weights))
    return _solve(w, weights, ridge, key, sweeps, tol, rank, starts)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _solve(w, weights, ridge, key, sweeps, tol, rank, starts):
    known = weights > 0
    peak = jnp.max(jnp.where(known, jnp.abs(w), 0))
    mean = jnp.mean(weights)
    finite = jnp.isfinite(peak) & jnp.isfinite(mean)
    unit = jnp.where(finite & (peak > 0), peak, 1)
    x = jnp.where(known & finite, w / unit, 0)
    f = jnp.where(finite, weights / jnp.where(mean > 0, mean, 1), 0)
    loss = lambda factors: jnp.sum(f * (x - compose(factors)) ** 2)
    flat = [(unfold(x, k), unfold(f, k)) for k in range(x.ndim)]

    def sweep(state, _):
        factors, old, age, best = state
        new_age = (1 + jnp.sqrt(1 + 4 * age**2)) / 2
        momentum = (age - 1) / new_age
        ahead = tuple(a + momentum * (a - b) for a, b in zip(factors, old, strict=True))
        for k, (target, weight) in enumerate(flat):
            others = khatri_rao([*ahead[:k], *ahead[k + 1 :]])
            better = cg_rows(target, weight, ahead[k].T, others, ridge, CG_STEPS).T
            ahead = (*ahead[:k], better, *ahead[k + 1 :])
        value = loss(ahead) + ridge * _squares(ahead)
        rose = ~(value <= best)
        back, on = (factors, factors, jnp.ones_like(age), best), (ahead, factors, new_age, value)
        state = jax.tree.map(lambda a, b: jnp.where(rose, a, b), back, on)
        return state, state[3]

    def run(*factors):
        # Entries are about one: so are those of the start.
        factors = balance(tuple(a * jnp.sqrt(a.shape[1]) for a in factors))
        first = loss(factors) + ridge * _squares(factors)
        state = (factors, factors, jnp.ones(()), first)
        (factors, *_), progress = iterate(
            sweep, state, first, steps=sweeps, tol=tol, patience=3, goal=1e-12 * jnp.sum(f * x**2)
        )
        return balance(factors), progress

    begin = start.random(key, x.shape, rank, starts)
    tried, progress = over_stack(run, begin, core=2)
    best = jnp.argmin(progress.objective)
    factors: Factors = tuple(a[best] for a in tried)
    form = CP(*canonical(jnp.full(rank, jnp.where(finite, unit, 0)), [a.T for a in factors]))
    size = jnp.where(finite, unit * jnp.sqrt(mean), jnp.nan)
    ended = jnp.where(progress.converged[best], int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    return form, CPInfo(
        residual=jnp.sqrt(loss(factors)) * size,
        iterations=progress.steps[best],
        status=jnp.where(finite, ended, int(Status.NON_FINITE)).astype(jnp.int32),
        intensity=form.intensity,
    )


def _squares(factors: Factors) -> Array:
    return functools.reduce(operator.add, [jnp.sum(a**2) for a in factors])
