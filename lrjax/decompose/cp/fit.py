"""The CP solver: core, starts, sweeps, polish, correction; one tensor, static rank."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.decompose.cp import start
from lrjax.decompose.cp.als import PROXIMAL, SWEEPS_PER_SEARCH, als, balance, relative_residual
from lrjax.decompose.cp.correction import SWEEPS
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.cp import CP
from lrjax.linalg.driver import Progress
from lrjax.linalg.info import Info, Status
from lrjax.linalg.khatri_rao import Factors
from lrjax.linalg.stack import over_stack, working

CALM = 2.0
"""Intensity below which terms do not cancel enough to be corrected."""

DIVERGENT = 100.0
"""Intensity from which a fit is reported as cancelling: float32 keeps five digits of it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CPInfo(Info):
    """Info with the intensity sqrt(sum_r |term_r|^2) / |W| of the fit: large where terms cancel."""

    intensity: Any = None

    def message(self) -> str:
        """The worst status, and a word where terms cancel."""
        worst = float(np.max(np.asarray(self.intensity), initial=0))
        if worst < DIVERGENT:
            return super().message()
        return f"{super().message()}; terms cancel (intensity {worst:.0f}): lower the rank"


def cp(
    w: Float[Array, "*d"],
    rank: int,
    *,
    stack: int = 0,
    key: Array | None = None,
    starts: int = 8,
    sweeps: int | Array = 400,
    tol: float | Array = 1e-4,
    goal: float | Array = 5e-6,
    proximal: float | Array = PROXIMAL,
    slack: float | Array = 1e-3,
) -> tuple[CP, CPInfo]:
    """A sum of `rank` rank-one tensors near W, by alternating least squares.

    min |W - sum_r scale_r f_0r (x) f_1r (x) ...|. The tensor is compressed to its Tucker core;
    `starts` random starts and, where it applies, the generalised eigenvalue one run there; the
    best is expanded, polished on W, and corrected for cancelling terms. Columns of the factors
    have unit norm, scales fall and are not negative. A minimum need not exist: then the intensity
    in the info grows with the sweeps.

    Args:
      w: tensor of three or more modes behind its stack axes.
      rank: number of terms; it may exceed every mode size.
      stack: number of leading stack axes, each index of which is a problem of its own.
      key: randomness; the same key gives the same bits.
      starts: random starts.
      sweeps: most sweeps of each of the two phases.
      tol: relative decrease of the residual in four sweeps below which it has settled.
      goal: relative residual that is as good as exact.
      proximal: pull towards the previous iterate, relative to the Gram.
      slack: growth of the residual that the correction may spend; 0 does not correct.

    Raises:
      RankError: rank or starts below one.
      ShapeError: fewer than two modes, or an empty one.
    """
    shape = w.shape[stack:]
    if rank < 1 or starts < 1:
        todo = "Ask for at least one term, and one start."
        got = f"rank {rank} from {starts} starts"
        raise RankError(message(got=got, expected="positive numbers", todo=todo))
    if len(shape) < 2 or 0 in shape:
        todo = "Fold a matrix into more modes first."
        got = f"a tensor of shape {shape}"
        raise ShapeError(message(got=got, expected="at least two modes, none empty", todo=todo))
    key = jax.random.key(0) if key is None else key
    w = jax.lax.stop_gradient(working(w))
    return _solve(w, key, sweeps, tol, goal, proximal, slack, rank, starts, len(shape))


@functools.partial(jax.jit, static_argnums=(7, 8, 9))
def _solve(w, key, sweeps, tol, goal, proximal, slack, rank, starts, modes):
    limits = {"sweeps": sweeps, "tol": tol, "goal": goal, "proximal": proximal}

    def single(w: Array) -> tuple[CP, CPInfo]:
        peak = jnp.max(jnp.abs(w))
        finite = jnp.isfinite(peak)
        t = jnp.where(finite, w / jnp.where(finite & (peak > 0), peak, 1), 0)
        norm = jnp.linalg.norm(t.ravel())
        t = t / jnp.where(norm > 0, norm, 1)
        factors, steps, converged = _fit(t, rank, starts, key, limits, slack)
        residual = relative_residual(t, factors)
        ones = jnp.full(rank, jnp.where(finite, norm * peak, 0))
        form = CP(*canonical(ones, [f.T for f in factors]))
        status = jnp.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        info = CPInfo(
            residual=jnp.where(finite, residual * norm * peak, jnp.nan),
            iterations=steps * SWEEPS_PER_SEARCH,
            status=jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32),
            intensity=form.intensity,
        )
        return form, info

    return over_stack(single, [w], core=modes)


def _fit(
    t: Array, rank: int, starts: int, key: Array, limits: dict[str, Any], slack: float | Array
) -> tuple[Factors, Array, Array]:
    """Factors of the unit tensor T, groups of sweeps in all, and whether they settled."""
    core_key, random_key, eigen_key = jax.random.split(key, 3)
    small, bases = start.core(t, rank, core_key)
    begin = start.random(random_key, small.shape, rank, starts)
    if start.has_eigen_start(small.shape, rank):
        more = balance(start.eigen(small, rank, eigen_key))
        begin = tuple(jnp.concatenate([f, x[None]]) for f, x in zip(begin, more, strict=True))
    reduced = any(basis is not None for basis in bases)
    explore = limits | {"sweeps": limits["sweeps"] if reduced else limits["sweeps"] // 4}
    run = lambda *factors: als(small, factors, **explore)
    tried, progress = over_stack(run, begin, core=2)
    best = jnp.argmin(jnp.where(jnp.isfinite(progress.objective), progress.objective, jnp.inf))
    factors = start.expand(tuple(f[best] for f in tried), bases)
    factors, polish = _polish(t, factors, limits, slack)
    return factors, progress.steps[best] + polish.steps, polish.converged


def _polish(
    t: Array, factors: Factors, limits: dict[str, Any], slack: float | Array
) -> tuple[Factors, Progress]:
    """Sweeps on T itself, then the correction: a loop of two, so that sweeps compile once."""

    def phase(i: Array, carry: tuple[Factors, Progress]) -> tuple[Factors, Progress]:
        factors, polish = carry
        first = i == 0
        options = {
            "sweeps": jnp.where(first, limits["sweeps"], jnp.where(slack > 0, SWEEPS, 0)),
            "goal": jnp.where(first, limits["goal"], CALM),
            "bound": jnp.where(first, 0, (1 + slack) * relative_residual(t, factors)),
        }
        factors, progress = als(t, factors, **limits | options)
        return factors, jax.tree.map(lambda a, b: jnp.where(first, a, b), progress, polish)

    no = jnp.zeros((), bool)
    begin = Progress(jnp.zeros((), t.dtype), jnp.zeros((), jnp.int32), no, no)
    factors, polish = jax.lax.fori_loop(0, 2, phase, (factors, begin))
    return balance(factors), polish


def canonical(
    scale: Float[Array, "*S r"], factors: Sequence[Float[Array, "*S _ r"]]
) -> tuple[Float[Array, "*S r"], tuple[Float[Array, "*S _ r"], ...]]:
    """The same tensor with unit columns and scales that fall and are not negative.

    In every factor but the last, the entry of largest magnitude of a column is positive.
    """
    sign, columns = jnp.sign(scale), []
    scale = jnp.abs(scale)
    for k, f in enumerate(factors):
        norm = jnp.linalg.norm(f, axis=-2)
        peak = jnp.max(f, axis=-2) + jnp.min(f, axis=-2)
        flip = sign if k == len(factors) - 1 else jnp.where(peak < 0, -1.0, 1.0)
        sign, scale = sign * flip, scale * norm
        columns.append(f * (flip / jnp.where(norm > 0, norm, 1))[..., None, :])
    order = jnp.argsort(-scale, axis=-1)
    ordered = lambda x: jnp.take_along_axis(x, order, axis=-1)
    columns = (jnp.take_along_axis(f, order[..., None, :], axis=-1) for f in columns)
    return ordered(scale), tuple(columns)
