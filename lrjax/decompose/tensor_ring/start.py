"""Where the sweeps of a ring start: the best of several rings of a much smaller tensor."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from lrjax.decompose.chain.cores import Chain, close, finish, gauged, status, weight
from lrjax.decompose.chain.digits import Digits, interleave
from lrjax.decompose.chain.svd import split
from lrjax.decompose.chain.sweeps import Problem, sweep
from lrjax.decompose.tucker.start import initial
from lrjax.formats.tensor_ring import TensorRing
from lrjax.linalg import Accuracy
from lrjax.linalg.draw import normal
from lrjax.linalg.driver import iterate
from lrjax.linalg.stack import over_stack, working
from lrjax.linalg.tensor import total, unit_of

STARTS = 8
"""Rings that are tried. Of planted ones, three cores of ranks 2 to 4, a random start finds 17 to
50 %, TR-SVD a third, and eight together 22 of 24; of four and five cores most starts find them."""

SWEEPS = 100
"""Most sweeps of each; a plateau on the way to a planted ring is tens of sweeps long."""

TOL, PATIENCE = 1e-3, 3
"""Relative decrease that counts as still, and how many such sweeps in a row end a start."""


def best_start(
    w: Float[Array, "*S M N"],
    rows: Digits,
    cols: Digits,
    ranks: tuple[int, ...],
    *,
    first: int = 0,
    starts: int = STARTS,
    key: Array,
) -> tuple[TensorRing, Int[Array, "*S"]]:
    """The best of several rings, from TR-SVD and random cores, and the status.

    They are rings of X cut to r_k r_{k+1} vectors a mode, by the sequentially truncated HOSVD.

    No ring of these ranks has more than r_k r_{k+1} vectors along mode k, so that an exact one is
    in their span; what is left is small and many starts cost little. One does not do: sweeps of
    rings end in local minima.
    """
    cores, code = _solve(
        lax.stop_gradient(w), key, rows=rows, cols=cols, ranks=ranks, first=first, starts=starts
    )
    return weight(TensorRing, cores, w), code


@functools.partial(jax.jit, static_argnames=("rows", "cols", "ranks", "first", "starts"))
def _solve(w, key, *, rows: Digits, cols: Digits, ranks: tuple[int, ...], first: int, starts: int):
    turned = lambda xs: (*xs[first:], *xs[:first])
    bonds, d = turned(ranks), len(ranks)
    widths = tuple(a * b for a, b in zip(bonds, (*bonds[1:], bonds[0]), strict=True))

    def single(w: Array) -> tuple[Any, Array]:
        x = interleave(w, rows, cols)
        x = x.transpose(turned(range(d)))
        unit, _, finite = unit_of(x)
        modes = [k for k in range(d) if widths[k] < x.shape[k]]
        y, factors, deficient = initial(x, widths, modes, [None] * d, unit, finite, key)
        y = jnp.where(finite, y if modes else x * unit, 0)
        chain = _best(y, bonds, starts, key)
        chain = tuple(
            core if f is None else jnp.einsum("rds,nd->rns", core, f, precision="highest")
            for core, f in zip(chain, factors, strict=True)
        )
        cores = (*chain[d - first :], *chain[: d - first])
        return finish(cores, unit, finite, rows, cols), status(finite, deficient)

    return over_stack(single, [working(w)], core=2)


def _best(y: Array, ranks: tuple[int, ...], starts: int, key: Array) -> Chain:
    """The best ring of one tensor."""
    bonds = zip(ranks, y.shape, (*ranks[1:], ranks[0]), strict=True)
    keys = jax.random.split(key, len(ranks))
    found = split(y, ranks, key, Accuracy.DEFAULT)
    *others, last = found.cores
    chains = tuple(
        jnp.concatenate([core[None], normal(k, (starts - 1, *shape), y.dtype)])
        for core, k, shape in zip((*others, last / found.unit), keys, bonds, strict=True)
    )
    problem = Problem(y, None, [jnp.ones(n) for n in y.shape])
    loss = lambda chain: total((y - close(chain).reshape(y.shape)) ** 2)
    step = lambda chain, i: (moved := sweep(chain, i, problem), loss(moved))

    def run(chain: Chain) -> tuple[Chain, Array]:
        chain = gauged(chain)
        goal = 1e-13 * total(y**2)
        chain, progress = iterate(
            step, chain, loss(chain), steps=SWEEPS, tol=TOL, goal=goal, patience=PATIENCE
        )
        return chain, progress.objective

    chains, losses = lax.map(run, chains)
    pick = jnp.argmin(losses)
    return tuple(core[pick] for core in chains)
