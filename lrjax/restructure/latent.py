"""Latent attention out of plain attention: the cache holds r floats a token for all heads.

One basis for all key and value heads of a layer, from what calibration saw of their inputs, and a
core for each head (`lrjax.decompose.attention`); `lrjax.zoo.latent` runs it. In the decoupled form
a few rotated pairs that all heads share stay beside the latent, and the rest is not rotated any
more (arXiv:2405.04434, arXiv:2502.14837, arXiv:2502.07864): the cheapest to read, and, at a small
cache, in need of training afterwards. ``benchmarks/latent_cache.py``, a small trained Llama at a
quarter of its cache: rebuilt keys cost 0.005 bits a byte (plain SVD: 0.107), the decoupled form
0.096, heads merged to one 1.30, averaged 2.79.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.decompose.attention import (
    components,
    join_heads,
    joint_basis,
    joint_spectrum,
    pair_energy,
    split,
)
from lrjax.errors import BudgetError, RankError, RuleError, message
from lrjax.metrics import Kind
from lrjax.plan import Budget, Global, Uniform
from lrjax.plan.allocation import Demand
from lrjax.plan.budget import Currency
from lrjax.plan.knapsack import least_cost
from lrjax.restructure.heads import Heads, heads_of
from lrjax.restructure.structure import Module, Structure, finite, is_attention
from lrjax.zoo import rope
from lrjax.zoo.latent_config import Latent


@dataclasses.dataclass(frozen=True)
class LatentKV(Structure):
    """Keys and values from one latent of ``rank`` floats a token, which alone is cached.

    At most one of ``rank`` and ``keep``; without both, the call's ``Budget(kv_bytes=...)`` is
    shared out among the layers by their calibrated spectra.

    Attributes:
        rank: floats of the latent in every layer.
        keep: share of a layer's cache that stays, rotated pairs included.
        rotary: rotated pairs that all heads share, beside the latent, two floats each; what is left
            of the keys is rotated no more. None: all keys stay rotated, rebuilt from the latent.
        metric: what error means; default: all that the statistics have.
        span: pairs stay rotated that turn far within this distance.
    """

    rank: int | None = None
    keep: float | None = None
    rotary: int | None = None
    metric: Kind | None = None
    span: int = 32

    def __post_init__(self) -> None:
        given = {k: v for k, v in vars(self).items() if v is not None and k != "metric"}
        wrong = [k for k, v in given.items() if not (0 < v <= 1 if k == "keep" else v >= 1)]
        if wrong or {"rank", "keep"} <= given.keys():
            got = ", ".join(f"{k}={given[k]}" for k in wrong or ("rank", "keep"))
            expected = "one of a rank of at least 1 and a share in (0, 1]; at least one pair"
            raise RankError(message(got=got, expected=expected, todo="Correct the spec."))

    @property
    def uses_budget(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where it says no size itself."""
        return self.rank is None and self.keep is None

    def fits(self, module: Module) -> bool:
        """Attention of a layer, with kernels for query, key, value and output."""
        return is_attention(module)

    def rebuild(
        self, config: Any, modules: Sequence[Module], budget: Budget | None
    ) -> tuple[Any, Sequence[Module]]:
        """The same modules with a basis and cores."""
        views = [heads_of(config, module, "LatentKV") for module in modules]
        parts = [_parts(view, self) for view in views]
        ranks = self._ranks(config, parts, budget)
        most = max((r for r, own in zip(ranks, parts, strict=True) if r != own.full), default=1)
        new = [_rebuilt(own, rank, most) for own, rank in zip(parts, ranks, strict=True)]
        latents = {
            own.view.layer: Latent(rank, own.rotary) for own, rank in zip(parts, ranks, strict=True)
        }
        return config.with_latents(latents), new

    def _ranks(self, config: Any, parts: Sequence["Parts"], budget: Budget | None) -> list[int]:
        """The rank of every layer."""
        if self.rank is not None:
            return [self.rank] * len(parts)
        if self.keep is not None:
            floats = [int(self.keep * config.kv_floats(own.view.layer) + 1e-9) for own in parts]
            if any(n <= own.beside for n, own in zip(floats, parts, strict=True)):
                got, expected = f"keep={self.keep:g}, {min(floats)} floats", "room for a latent"
                todo = "Keep more, or fewer rotated pairs."
                raise BudgetError(message(got=got, expected=expected, todo=todo))
            return [min(n - own.beside, own.full) for n, own in zip(floats, parts, strict=True)]
        if budget is None or budget.currency is not Currency.KV_BYTES:
            got = "neither rank nor keep" if budget is None else f"a budget of {budget}"
            expected, todo = "a size", "Pass budget=Budget(kv_bytes=...), or give the spec one."
            raise BudgetError(message(got=got, expected=expected, todo=todo))
        return _shared_out(config, parts, int(budget.kv_bytes or 0))


class Parts(NamedTuple):
    """What a latent is to stand for, and what is beside it.

    Attributes:
        view: the attention.
        keys: kernels [groups, d, h] of the keys that come from the latent.
        values: kernels [groups, d, h].
        rotary: frequencies of the shared rotated pairs; None where there are none.
        leaves: their parameters.
        rows: the metric of the inputs, and `mean` what it leaves out for biases to hold.
        cols: those of each head's keys and values.
        absolute: whether losses are the model's own.
    """

    view: Heads
    keys: Array
    values: Array
    rotary: tuple[int, ...] | None
    leaves: dict[str, Array]
    rows: Array | None
    mean: Array | None
    cols: tuple[Array | None, Array | None]
    absolute: bool

    @property
    def full(self) -> int:
        """The rank at which nothing is lost."""
        columns = sum(w.shape[0] * w.shape[2] for w in (self.keys, self.values))
        return min(self.keys.shape[1], columns)

    @property
    def beside(self) -> int:
        """Floats that are cached beside the latent."""
        return 2 * len(self.rotary or ())


def _parts(view: Heads, spec: LatentKV) -> Parts:
    kind, of_keys = view.metric("key", spec.metric)
    _, of_values = view.metric("value", spec.metric)
    sides = view.head_sides(of_keys.arrays()[1]), view.head_sides(of_values.arrays()[1])
    keys, rotary, leaves = view.of("key"), None, {}
    if spec.rotary is not None:
        keys, rotary, leaves = _decoupled(view, spec.rotary, spec.span, sides[0])
    rows, mean = of_keys.arrays()[0], of_keys.mean
    values, absolute = view.of("value"), kind.is_model_loss
    return Parts(view, keys, values, rotary, leaves, rows, mean, sides, absolute)


def _shared_out(config: Any, parts: Sequence[Parts], total: int) -> list[int]:
    """Ranks of least loss within the bytes of a token, those of the other layers included.

    Where losses are not the model's own, and so not comparable, every layer keeps one share.
    """
    size = parts[0].view.module.weights["key/kernel"].dtype.itemsize
    mine = {own.view.layer for own in parts}
    rest = size * sum(config.kv_floats(i) for i in range(config.depth) if i not in mine)
    demands = []
    for own in parts:
        s = _spectrum((own.keys, own.values), rows=own.rows, cols=own.cols)
        energy = np.asarray(s, np.float64) ** 2
        tails = np.append(np.cumsum(energy[::-1])[::-1][1 : own.full], 0.0)
        costs = size * (own.beside + np.arange(1, own.full + 1))
        dense = size * config.kv_floats(own.view.layer)
        demands.append(Demand(costs, tails, dense, float(energy.sum()), own.absolute))
    least = rest + least_cost([d.costs for d in demands])
    if total < least:
        todo = "Raise the budget, let the rule match more layers, or keep fewer rotated pairs."
        got = f"{total:,} bytes of cache a token"
        raise BudgetError(message(got=got, expected=f"at least {least:,}", todo=todo))
    comparable = all(own.absolute for own in parts)
    picks = (Global() if comparable else Uniform()).choose(demands, total - rest)
    return [1 + pick for pick in picks]


def _rebuilt(parts: Parts, rank: int, most: int) -> Module:
    """The attention with its basis and cores, and biases that hold what is constant."""
    view, path = parts.view, parts.view.module.path
    # One compilation for all ranks: the factors of a larger one are cut to the layer's own.
    covering = rank if rank >= parts.full else min(most, parts.full - 1)
    solved = _solve((parts.keys, parts.values), parts.rows, parts.cols, rank=covering)
    basis, *cores = (np.asarray(finite(path, x)) for x in solved)
    basis, cores = basis[:, :rank], [core[:rank] for core in cores]
    leaves = {**parts.leaves, "basis/kernel": basis}
    mean = np.zeros(len(basis)) if parts.mean is None else np.asarray(parts.mean)
    for kind, old, core in zip(("key", "value"), (parts.keys, parts.values), cores, strict=True):
        lost = mean @ np.asarray(join_heads(old)) - mean @ basis @ core
        leaves[f"{kind}/kernel"] = core
        leaves[f"{kind}/bias"] = view.bias(kind).reshape(-1) + lost
    if not view.rotated or parts.rotary is not None:
        del leaves["key/bias"]  # it adds the same to all scores of a query
    kept = {p: w for p, w in view.module.weights.items() if not p.startswith(("key/", "value/"))}
    dtype = view.module.weights["key/kernel"].dtype
    leaves = {p: finite(f"{path}/{p}", jnp.asarray(w)).astype(dtype) for p, w in leaves.items()}
    return dataclasses.replace(view.module, weights=kept | leaves)


@functools.partial(jax.jit, static_argnames="rank")
def _solve(stacks: Any, rows: Any, cols: Any, *, rank: int) -> tuple[Array, Array, Array]:
    """The basis, and the cores of keys and of values, heads side by side."""
    found = joint_basis(stacks, rank, rows=rows, cols=cols)
    keys, values = map(join_heads, found.cores)
    return found.basis, keys, values


_spectrum, _components = jax.jit(joint_spectrum), jax.jit(components)


def _decoupled(
    view: Heads, count: int, span: int, sides: Float[Array, "groups h h"] | None
) -> tuple[Array, tuple[int, ...], dict[str, Array]]:
    """The rest of the keys, the frequencies of the pairs that stay, and their parameters.

    What is lost by not turning a component is its energy times E|1 - exp(i f s)|^2 over distances.
    """
    most = view.groups * view.config.head_size // 2
    if not view.rotated or view.normed or count > most:
        kind = f"keys of {view.groups} heads of {view.config.head_size}"
        kind += ", normalised" if view.normed else "" if view.rotated else ", not rotated"
        expected = f"rotated keys that are not normalised, at most {most} pairs"
        todo = "Leave rotary out: the keys are rebuilt as they are."
        path = view.module.path
        raise RuleError(
            message(path=path, got=f"{count} pairs of {kind}", expected=expected, todo=todo)
        )
    keys, gram = view.affine("key")
    queried = jnp.sum(view.grouped(view.outputs("query")), axis=1) if sides is None else sides
    found = _components(keys, pair_energy(queried), gram)
    cos, _ = rope.rotations(view.config.rope, view.config.head_size, jnp.arange(span)[None], span)
    lost = 1 - jnp.mean(cos[0, :, 0] / cos[0, 0, 0], axis=0)[: found.energy.shape[0]]
    # Components of one frequency come by energy, so that those chosen are its first ones.
    best = np.argsort(-np.asarray(found.energy * lost[:, None]), axis=None, kind="stable")[:count]
    rotary = tuple(sorted(int(i) // view.groups for i in best))
    shared, mix, rest = split(keys, found, rotary)
    leaves = {"mix": mix}
    if view.has_bias("key"):
        leaves["rotary/bias"], shared, rest = shared[-1], shared[:-1], rest[:, :-1]
    return rest, rotary, leaves | {"rotary/kernel": shared}
