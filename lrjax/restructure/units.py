"""Fewer hidden units: MLPs whose remaining units answer for those that left (Nystrom).

With hidden units h, C = E[h h'] and y = h W, the units k that stay give the least E|y - h_k W'|^2
with W' = C_kk^-1 C_k: W, so that a cut MLP is a plain smaller one: its columns of gate and up, and
a new down (MoDeGPT, arXiv:2408.09632). A unit's leverage is what the others do not explain of it,
1 / (C^-1)_ii. Ranked at once by leverage, of two equal units both would leave; so units are chosen
one by one, by their leverage |w_i|^2 / (C_{k+i}^-1)_ii among the chosen ones: the pivots of a
Cholesky factorisation of C, which tells the error at every size too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot, over_stack
from lrjax.linalg.whitening import sqrt_psd
from lrjax.plan.batching import batches, grouped
from lrjax.restructure.sizes import Curve, Cut
from lrjax.restructure.structure import Module, finite, stack

RIDGE = 1e-6
"""Added to C at unit diagonal, ten roundings of float32; ten times more until it can be solved."""

BLOCK = 64
"""Units chosen between two updates of the whole remainder of C, which are products of matrices."""

READERS = ("gate", "up")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units(Cut):
    """Cuts the hidden units of MLPs, gated or not; needs statistics.

    With the statistics' output gradients the error is the model's own loss, else that of each MLP's
    output. A bias of the last layer takes the mean of what is left out.
    """

    def fits(self, module: Module) -> bool:
        """An MLP of a layer: ``up``, ``down``, and ``gate`` if it is gated."""
        return module.parts in ({"up", "down"}, {"gate", "up", "down"}) and module.layered

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Any
    ) -> tuple[Any, Sequence[Module]]:
        """The same MLPs with fewer units."""
        orders, curves = _ranked(modules)
        sizes = self.choose(curves)
        new = _cut(modules, orders, sizes)
        return config.with_mlp_sizes({m.layer: k for m, k in zip(modules, sizes, strict=True)}), new


def _ranked(modules: Sequence[Module]) -> tuple[list[np.ndarray], list[Curve]]:
    """The units of every module, the most needed first, and the error at every size."""
    found: dict[str, tuple[np.ndarray, Curve]] = {}
    for group in grouped(modules, _shape):
        for batch, real in batches(group, 4 * _shape(group[0])[0] ** 2):
            gram, _ = _moments(batch)
            cols, down = _cols(batch), stack(batch, "down/kernel")
            target = down if cols is None else dot(down, sqrt_psd(cols))
            order, errors, total = map(np.asarray, _rank(gram, target))
            for i, m in enumerate(batch[:real]):
                cost = sum(w.size for path, w in m.weights.items() if path != "down/bias")
                curve = Curve(errors[i], float(total[i]), cost // len(order[i]), cols is not None)
                found[m.path] = order[i], curve
    return [found[m.path][0] for m in modules], [found[m.path][1] for m in modules]


def _cut(
    modules: Sequence[Module], orders: Sequence[np.ndarray], sizes: Sequence[int]
) -> list[Module]:
    """Every module with its first units, in their old order; a whole one is left as it is."""
    new = {m.path: m for m in modules}
    jobs = [
        (m, np.sort(order[:size]))
        for m, order, size in zip(modules, orders, sizes, strict=True)
        if size < len(order)
    ]
    for group in grouped(jobs, lambda job: _shape(job[0])):
        for batch, real in batches(group, 4 * _shape(group[0][0])[0] ** 2):
            own = [m for m, _ in batch]
            gram, mean = _moments(own)
            down, kept = stack(own, "down/kernel"), np.zeros(gram.shape[:2], bool)
            for row, (_, units) in zip(kept, batch, strict=True):
                row[units] = True
            merged = _merge(gram, down, jnp.asarray(kept))
            lost = jnp.einsum("bf,bfd->bd", mean, down - merged, precision="highest")
            for i, (m, units) in enumerate(batch[:real]):
                weights = {
                    path: w[..., units]
                    for path, w in m.weights.items()
                    if path.split("/")[0] in READERS
                }
                weights["down/kernel"] = finite(f"{m.path}/down/kernel", merged[i, units])
                if "down/bias" in m.weights:
                    weights["down/bias"] = m.weights["down/bias"] + lost[i]
                new[m.path] = m.replace(weights)
    return [new[m.path] for m in modules]


def _shape(module: Module) -> tuple[int, ...]:
    return module.weights["down/kernel"].shape


def _moments(modules: Sequence[Module]) -> tuple[Array, Array]:
    """C and the mean of the hidden units; centred where a bias can hold what that leaves out."""
    found = [m.moments("down/kernel") for m in modules]
    gram = jnp.stack([f.second.astype(jnp.float32) for f in found])
    if any("down/bias" not in m.weights for m in modules) or any(f.mean is None for f in found):
        return gram, jnp.zeros(gram.shape[:2])
    mean = jnp.stack([f.mean.astype(jnp.float32) for f in found])
    return gram - mean[:, :, None] * mean[:, None, :], mean


def _cols(modules: Sequence[Module]) -> Array | None:
    """E[g g'] of the gradients g at the output of down, where calibration took them."""
    found = [m.gradients("down/kernel") for m in modules]
    return None if any(g is None for g in found) else jnp.stack(found)  # pyright: ignore


@jax.jit
def _rank(gram: Float[Array, "b f f"], down: Float[Array, "b f d"]):
    """The order of the units, the error at sizes 1 to f, and the error of none, for each."""

    def single(gram: Array, down: Array) -> tuple[Array, Array, Array]:
        f, value = len(gram), jnp.sum(down**2, axis=1)
        variance = jnp.diagonal(gram)

        def choose(t: Array, state: tuple[Array, ...], rest: Array) -> tuple[Array, ...]:
            lower, left, alive, order = state
            i = jnp.argmax(jnp.where(alive, value * jnp.maximum(left, 0), -1))
            column = jnp.where(alive, rest[:, i] - dot(lower, lower[i]), 0)
            new = column[i] > RIDGE * variance[i]
            column = jnp.where(new, column * lax.rsqrt(jnp.where(new, column[i], 1)), 0)
            lower, left = lower.at[:, t].set(column), left - column**2
            return lower, left, alive.at[i].set(False), order.at[t].set(i)

        def block(state: tuple[Array, Array], _: None) -> tuple[Any, tuple[Array, Array]]:
            rest, alive = state
            start = jnp.zeros((f, size)), jnp.diagonal(rest), alive, jnp.zeros(size, int)
            step = functools.partial(choose, rest=rest)
            lower, _, alive, order = lax.fori_loop(0, size, step, start)
            # C - C_:k C_kk^-1 C_k: is what the later columns span.
            lost = jnp.sum(dot(lower.T, down) ** 2, axis=1)
            return (rest - dot(lower, lower.T), alive), (order, lost)

        size = min(f, BLOCK)
        _, (order, lost) = lax.scan(block, (gram, jnp.ones(f, bool)), None, -(-f // size))
        order, lost = order.reshape(-1)[:f], lost.reshape(-1)[:f]
        errors = jnp.cumsum(lost[::-1])[::-1]
        return order, jnp.append(errors[1:], 0), errors[0]

    return over_stack(single, [gram, down], core=2)


@jax.jit
def _merge(gram: Float[Array, "b f f"], down: Float[Array, "b f d"], kept: Array) -> Array:
    """C_kk^-1 C_k: W in the rows of the units that are kept, zeros elsewhere."""

    def single(gram: Array, down: Array, kept: Array) -> Array:
        variance = jnp.diagonal(gram)
        alive = kept & (variance > 0)
        roots = jnp.sqrt(jnp.where(alive, variance, 1))
        corr = jnp.where(alive[:, None] & alive[None], gram / roots[:, None] / roots[None], 0)
        ridge, lower = _cholesky(corr + jnp.diag(jnp.where(alive, 0.0, 1.0)))
        # Drawn to the old W rather than to zero: nothing changes where nothing leaves.
        target = dot(gram / roots[:, None], down) + ridge * roots[:, None] * down
        new = cho_solve((lower, True), jnp.where(alive[:, None], target, 0)) / roots[:, None]
        return jnp.where(alive[:, None], new, jnp.where(kept[:, None], down, 0))

    return over_stack(single, [gram, down, kept], core=2)


def _cholesky(corr: Array) -> tuple[Array, Array]:
    """The least ridge, in powers of ten, at which C + ridge I has a factor L, and L."""

    def attempt(ridge: Array) -> tuple[Array, Array]:
        return ridge, jnp.linalg.cholesky(corr + ridge * jnp.eye(len(corr)))

    failed = lambda state: ~jnp.all(jnp.isfinite(state[1])) & (state[0] < 1)
    return lax.while_loop(failed, lambda s: attempt(10 * s[0]), attempt(jnp.float32(RIDGE)))
