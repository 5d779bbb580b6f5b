"""Tucker decomposition: higher-order orthogonal iteration from a truncated HOSVD or a sketch."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lrjax.decompose.tucker.start import initial, leading, sketched
from lrjax.errors import RankError, ShapeError, message
from lrjax.formats.tucker import Tucker as TuckerWeight
from lrjax.linalg import Info, Status, whiten
from lrjax.linalg.driver import iterate
from lrjax.linalg.stack import dot, over_stack, working
from lrjax.linalg.tensor import CANCELS, missed, mode_product, squares, sweep, unit_of

Ranks = tuple[int | None, ...]

SWEEPS = 25
"""Most sweeps; with the default tolerance trained kernels settle in 3 to 8."""

TOL = 1e-4
"""Relative decrease of the squared error below which a sweep counts as still."""

LARGE = 1 << 20
"""Entries above which the first sweep starts from random vectors. 256^3 to ranks 32: 105 ms for
the HOSVD, 1.7e-2 above the optimum; 69 ms for two sweeps from random vectors, 9e-4."""


def tucker(
    x: Float[Array, "..."],
    ranks: Sequence[int | None],
    *,
    grams: Sequence[Array | None] | None = None,
    key: Array | None = None,
    init: TuckerWeight | None = None,
    sweeps: int | Array = SWEEPS,
    tol: float | Array = TOL,
) -> tuple[TuckerWeight, Info]:
    """The least |X - core x_1 F_1 ... x_N F_N|, each mode in the norm of its Gram.

    Each sweep of HOOI (De Lathauwer, De Moor and Vandewalle, 2000) gives every mode the leading
    left singular vectors of the tensor contracted with the other factors; products are shared
    between modes. The vectors come from the unfolding's Gram, of large modes by a few steps of
    subspace iteration from the last sweep's. The error never rises: the best iterate is what comes
    back. Kim et al. (arXiv:1511.06530) compress the two channel modes of a kernel and leave the
    others: rank None.

    The start of small tensors, and what `sweeps=0` returns, is the sequentially truncated HOSVD,
    modes in descending compression, within sqrt(N) of the optimum (Vannieuwenhoven, Vandebril and
    Meerbergen, 2012). The first sweep of large tensors starts from random vectors instead: an
    HOSVD takes longer than two sweeps. So one sweep alone is quick and rough there, and may be
    worse than none; two are better than the HOSVD.

    Args:
      x: tensors [*S, n_1, ..., n_N], one mode a rank; leading axes S are a stack.
      ranks: r_k from 1 to n_k, and not above the product of the other ranks; None leaves mode k.
      grams: the metric of each mode, [*S, n, n], its diagonal [*S, n] or None; a compressed mode
        is whitened by the Gram's root. Singular Grams are right: what they do not see is free.
      key: randomness of large truncated SVDs; the same key gives the same bits.
      init: factors to start from, of these ranks, in place of the HOSVD.
      sweeps: most sweeps.
      tol: relative decrease of the squared error that ends the run; may be traced.

    Returns:
      The weight, with one dense dimension a mode, and Info: the residual is that of the metric.

    Raises:
      RankError: a rank is out of range, or no mode is compressed.
      ShapeError: fewer modes than ranks, or `grams` or `init` do not fit.
    """
    shape = tuple(x.shape[x.ndim - len(ranks) :])
    ranks = check_ranks(shape, tuple(ranks))
    stack = x.ndim - len(ranks)
    grams = (None,) * len(ranks) if grams is None else tuple(grams)
    _check_grams(grams, shape, stack)
    if init is not None and (init.core.shape[stack:] != _core(shape, ranks)):
        got, want = f"an init with a core of {init.core.shape[stack:]}", f"{_core(shape, ranks)}"
        raise ShapeError(message(got=got, expected=want, todo="Start from the ranks asked for."))
    start = (None,) * len(ranks) if init is None else init.factors
    key = jax.random.key(0) if key is None else key
    none = isinstance(sweeps, int) and sweeps == 0
    rough = init is None and math.prod(shape) > LARGE and not none
    core, factors, info = _solve(x, grams, start, key, tol, sweeps, ranks=ranks, rough=rough)
    return TuckerWeight(core, factors), info


def check_ranks(shape: tuple[int, ...], ranks: Ranks) -> Ranks:
    """The ranks, if they are possible.

    Raises:
      RankError: they are not.
    """
    if len(ranks) > len(shape):
        got, todo = f"{len(ranks)} ranks for shape {shape}", "Give one rank a mode."
        raise ShapeError(message(got=got, expected=f"{len(shape)} modes", todo=todo))
    core = _core(shape, ranks)
    for k, rank in enumerate(ranks):
        if rank is None:
            continue
        others = functools.reduce(lambda a, b: a * b, core[:k] + core[k + 1 :], 1)
        if not 1 <= rank <= min(shape[k], others):
            got = f"rank {rank} of mode {k} in {ranks} for shape {shape}"
            expected = f"1 to {min(shape[k], others)}: the size of the mode, {shape[k]}, and the "
            expected += f"product of the other ranks, {others}"
            raise RankError(message(got=got, expected=expected, todo="Change the ranks."))
    if all(rank is None for rank in ranks):
        todo = "Give a rank to at least one mode."
        raise RankError(message(got=f"ranks {ranks}", expected="a mode to compress", todo=todo))
    return ranks


def _core(shape: tuple[int, ...], ranks: Ranks) -> tuple[int, ...]:
    return tuple(n if r is None else r for n, r in zip(shape, ranks, strict=True))


def _check_grams(grams: tuple[Array | None, ...], shape: tuple[int, ...], stack: int) -> None:
    sizes = [None if g is None else (g.ndim - stack, g.shape[-1]) for g in grams]
    fits = [s is None or s in ((1, n), (2, n)) for s, n in zip(sizes, shape, strict=False)]
    if len(grams) != len(shape) or not all(fits):
        got = f"Grams of shapes {[None if g is None else g.shape for g in grams]}"
        expected, todo = f"one for each mode of {shape}", "Give None, a diagonal or a matrix."
        raise ShapeError(message(got=got, expected=expected, todo=todo))


@functools.partial(jax.jit, static_argnames=("ranks", "rough"))
def _solve(x, grams, start, key, tol, sweeps, *, ranks: Ranks, rough: bool):
    count = len(ranks)
    modes = [k for k, rank in enumerate(ranks) if rank is not None]

    def single(x: Array, *rest: Array | None) -> Any:
        unit, energy, finite = unit_of(x)
        y = x
        inverses: dict[int, Array] = {}
        for k in modes:
            if (gram := rest[k]) is not None:
                finite &= jnp.all(jnp.isfinite(gram))
                first = not inverses
                root, inverses[k] = roots(jnp.where(finite, working(gram), 0))
                y = mode_product(y, root * unit if first else root, k)
        scale = 1.0 if inverses else unit
        energy = squares(y) if inverses else energy
        begin = sketched if rough else initial
        core, factors, deficient = begin(y, ranks, modes, rest[count:], scale, finite, key)
        begun = _error(y, core, factors, energy, scale)
        step = lambda state, _: _step(y, modes, energy, scale, finite, key, state)
        steps = sweeps - 1 if rough else sweeps
        (factors, core), progress = iterate(
            step, (factors, core), begun, steps=steps, tol=tol, goal=1e-14 * energy
        )
        residual = jnp.sqrt(_error(y, core, factors, energy, scale)) / unit
        outer = tuple(dot(inverses[k], f) if k in inverses else f for k, f in enumerate(factors))
        clean = lambda a: jnp.where(finite, a, 0).astype(a.dtype)
        settled = progress.converged | (sweeps == 0) | (tol <= 0)
        status = jnp.where(settled, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        status = jnp.where(deficient, int(Status.RANK_DEFICIENT), status)
        status = jnp.where(finite, status, int(Status.NON_FINITE)).astype(jnp.int32)
        taken = progress.steps + int(rough)
        info = Info(jnp.where(finite, residual, jnp.nan), taken, status)
        return clean(core) / unit, jax.tree.map(clean, outer), info

    arrays = [working(lax.stop_gradient(x)), *grams, *start]
    core, factors, info = over_stack(single, arrays, core=count)
    dtype = x.dtype
    return core.astype(dtype), jax.tree.map(lambda f: f.astype(dtype), factors), info


def roots(gram: Array) -> tuple[Array, Array]:
    """G^.5 and its pseudo-inverse, as matrices."""
    if gram.ndim == 2:
        return whiten(gram)
    root = jnp.sqrt(jnp.maximum(gram, 0))
    return jnp.diag(root), jnp.diag(jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0))


def _step(
    y: Array,
    modes: list[int],
    energy: Array,
    scale: Array | float,
    finite: Array,
    key: Array,
    state: Any,
) -> Any:
    """One sweep, and the squared error after it."""
    update = lambda k, z, factors: leading(z, k, factors[k].shape[1], key, factors[k], finite)
    factors, core = sweep(y, state[0], modes, update, scale)
    return (factors, core), _error(y, core, factors, energy, scale)


def _error(y: Array, core: Array, factors: Any, energy: Array, scale: Array | float) -> Array:
    """|scale Y - core x F|^2: from the norms of both while they differ in enough digits."""
    cheap = energy - squares(core)
    direct = lambda: missed(y, core, factors, scale)
    return lax.cond(cheap > CANCELS * energy, lambda: cheap, direct)
