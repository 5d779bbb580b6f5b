"""`plan`: from rules, a budget and statistics to a format and an integer rank for every weight."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lrjax import trees
from lrjax.calibrate import Stats
from lrjax.decompose import Spec
from lrjax.errors import BudgetError, RankError, ShapeError, StatsError, message
from lrjax.lift import WeightUse
from lrjax.metrics import Kind, WeightStats, default_kind
from lrjax.plan.allocation import Allocation, Global, Uniform
from lrjax.plan.batching import grouped
from lrjax.plan.binding import Bound, bind, tokens_of, weighed
from lrjax.plan.budget import Budget, Currency, of_cache
from lrjax.plan.knapsack import least_cost
from lrjax.plan.matching import Rule, Target, targets
from lrjax.plan.options import Choices, choices, dense_flops
from lrjax.plan.record import Entry, Plan
from lrjax.plan.rivals import rivals, why
from lrjax.plan.spectra import measure, spectra
from lrjax.plan.trial import corrected
from lrjax.trees import Tree

_Choice = tuple[Choices, int, Budget | None]


def plan(
    params: Tree,
    rules: Mapping[str, Rule],
    *,
    budget: Budget | Mapping[str, Budget] | None = None,
    stats: Stats | None = None,
    usage: Mapping[str, WeightUse] | None = None,
    metric: Kind | None = None,
    allocation: Allocation | None = None,
    tile: int = 1,
    trials: bool = True,
    sensitivity: Mapping[str, Sequence[float]] | None = None,
) -> Plan:
    """Choose a format and a rank for every weight that a rule matches; deterministic, on the host.

    Every option (candidate format, rank that is a multiple of `tile` and below break-even, staying
    dense) has a cost and a calibrated loss; `allocation` chooses one for each weight within the
    budget. Leaves that are no matrices (biases under a broad glob) stay dense, with the reason.

    Args:
        params: dense parameters.
        rules: path glob -> spec, list of candidate specs, or None to stay dense; the first match
            wins.
        budget: one limit, or glob -> limit for groups that are allocated apart (first match wins);
            None if every spec fixes its own rank.
        stats: what `calibrate` found; without it every entry of a weight counts alike.
        usage: which dims are rows and columns, from `lrjax.usage`; default: as the stats say.
        metric: what error means, for specs that do not say; default: all that the statistics have.
        allocation: `Global()` or `Uniform()`; default: global where every metric is two-sided
            or Fisher information, so that losses are the model's own and add up, else uniform.
        tile: ranks are multiples of it.
        trials: solve the candidates of rules that list several, on a few weights of each shape, and
            correct what was predicted; else they are compared by bounds.
        sensitivity: what `lrjax.sensitivity` found by the same rules: what is predicted counts as
            many times, in the place of trials; of all weights of a budget, or of none.

    Raises:
        RuleError: a rule matches nothing that can be factored, or a weight has no budget.
        BudgetError: the budget cannot be met; the message says the least reachable.
        RankError: a rank is fixed below one or above break-even.
        StatsError: a weight or statistic is not finite, missing, or of another model.
        ShapeError: a weight is factored already.
    """
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        todo = "Use 1 on CPU; 8, 64 or 128 on accelerators."
        raise BudgetError(message(got=f"tile={tile!r}", expected="a positive integer", todo=todo))
    uses = usage if usage is not None else ({} if stats is None else stats.usage)
    matched = [t.ranked() for t in targets(params, rules, uses)]
    planned = [t for t in matched if t.specs]
    kinds = {t.path: _kind(t, metric, weight_stats(stats, t.path)) for t in planned}
    bounds = _bounds(planned, stats, kinds)
    options = _options(planned, bounds, kinds, tile)
    if sensitivity is not None and not any(path in sensitivity for path in options):
        got = f"sensitivities of {', '.join(sensitivity) or 'no weight'}"
        todo = "Measure them by the same rules."
        expected = "those of planned weights"
        raise StatsError(message(got=got, expected=expected, todo=todo))
    groups = _groups(params, matched, budget)
    chosen: dict[str, _Choice] = {}
    for glob, limit, members in groups:
        mine = _sensitive([options[t.path] for t in members if t.path in options], sensitivity)
        # Sensitivities are measured against what is predicted, and correct it themselves.
        if trials and limit is not None and not any(c.sensitivity for c in mine):
            money = _money(params, glob, limit, mine, matched)
            dense = sum(c.demand(limit.currency).dense_cost for c in mine)
            mine = corrected(mine, bounds, limit.currency, money / max(dense, 1))
        chosen |= _allocate(params, glob, limit, mine, allocation, matched)
    pairs = tuple((glob, limit) for glob, limit, _ in groups if limit is not None)
    entries = tuple(_entry(t, chosen.get(t.path)) for t in matched)
    return Plan(entries, pairs, None if stats is None else stats.digest())


def weight_stats(stats: Stats | None, path: str, kind: Kind | None = None) -> WeightStats | None:
    """What one weight saw; loud if there are statistics, but none of this weight."""
    if stats is None:
        return None
    if path not in stats:
        raise StatsError(
            message(
                path=path,
                got="no statistics of this weight",
                expected="every planned weight to be used during calibration",
                todo="Calibrate with the model that is compressed, or map the path to None.",
            )
        )
    return stats.of(path)


def _options(
    planned: list[Target], bounds: dict[str, Bound], kinds: dict[str, Kind], tile: int
) -> dict[str, Choices]:
    """Path -> everything that may become of the weight."""
    spectrum = spectra(list(bounds.values()))
    found: dict[tuple[str, Spec], Any] = {}
    refused: dict[tuple[str, Spec], str] = {}
    for spec in dict.fromkeys(s for t in planned for s in t.specs):
        if type(spec).measure is Spec.measure:
            continue
        fit: list[Bound] = []
        tiled = spec.tiled(tile)  # some measure the very sizes that they will offer
        for group in grouped([t for t in planned if spec in t.specs], lambda t: bounds[t.path].key):
            mine = [bounds[t.path] for t in group]
            try:
                jax.eval_shape(tiled.measure, mine[0].matrix, mine[0].metric)
                fit += mine
            except (ShapeError, RankError, StatsError) as e:
                if alone := next((t.path for t in group if len(t.specs) == 1), None):
                    raise type(e)(f"{alone}: {e}") from e
                refused |= {(t.path, spec): str(e) for t in group}
        found |= {(path, spec): x for path, x in measure(tiled, fit).items()}

    def one(t: Target) -> Choices:
        mine = [found.get((t.path, s), spectrum[t.path]) for s in t.specs]
        no = {k: refused[t.path, s] for k, s in enumerate(t.specs) if (t.path, s) in refused}
        total = float(np.sum(spectrum[t.path] ** 2))
        return choices(t, kinds[t.path], mine, total, tile=tile, refused=no)

    return {t.path: one(t) for t in planned}


def _sensitive(
    mine: list[Choices], sensitivity: Mapping[str, Sequence[float]] | None
) -> list[Choices]:
    """Weights of one budget with the sensitivities of their candidates: all of them, or none."""
    if sensitivity is None or not any(c.target.path in sensitivity for c in mine):
        return mine
    found = []
    for c in mine:
        own, wanted = tuple(map(float, sensitivity.get(c.target.path, ()))), len(c.target.specs)
        if len(own) != wanted or not all(0 <= s < float("inf") for s in own):
            got, expected = f"sensitivities {own}", f"{wanted} finite ones, one a candidate"
            todo = "Measure them by the same rules: lrjax.sensitivity(apply, params, rules, ...)."
            raise StatsError(message(path=c.target.path, got=got, expected=expected, todo=todo))
        found.append(dataclasses.replace(c, sensitivity=own))
    return found


def _bounds(planned: list[Target], stats: Stats | None, kinds: dict[str, Kind]) -> dict[str, Bound]:
    """Path -> matrices and metric; a matrix that sees a share of the tokens counts as much."""
    seen = {t.path: weight_stats(stats, t.path) for t in planned}
    tokens = {path: tokens_of(s, kinds[path]) for path, s in seen.items()}
    most = max((float(n.max()) for n in tokens.values()), default=1.0) or 1.0
    found = {t.path: bind(t.path, t.leaf, t.layout, kinds[t.path], seen[t.path]) for t in planned}
    return {path: weighed(bound, tokens[path] / most) for path, bound in found.items()}


def _kind(t: Target, metric: Kind | None, seen: WeightStats | None) -> Kind:
    own = {s.metric for s in t.specs if s.metric is not None}
    if len(own) > 1:
        todo = "Candidates of one weight are compared under one metric."
        raise StatsError(message(path=t.path, got=own, expected="one metric", todo=todo))
    return next(iter(own), metric or default_kind(seen))


def _groups(
    params: Tree, matched: list[Target], budget: Budget | Mapping[str, Budget] | None
) -> list[tuple[str, Budget | None, list[Target]]]:
    """Glob, limit and targets of each group."""
    for limit in budget.values() if isinstance(budget, Mapping) else (budget,):
        if limit is not None and limit.currency is Currency.KV_BYTES:
            raise of_cache(limit)
    if budget is None or isinstance(budget, Budget):
        return [("**", budget, matched)]
    owner = trees.assign({glob: glob for glob in budget}, trees.paths(params))
    for t in matched:
        if t.specs and t.path not in owner:
            raise BudgetError(
                message(
                    path=t.path,
                    got=f"no budget among {list(budget)}",
                    expected="one for every weight that is to be factored",
                    todo="Add a glob that matches it, for example '**'.",
                )
            )
    return [(g, b, [t for t in matched if owner.get(t.path) == g]) for g, b in budget.items()]


def _allocate(
    params: Tree,
    glob: str,
    limit: Budget | None,
    mine: list[Choices],
    allocation: Allocation | None,
    matched: list[Target],
) -> dict[str, _Choice]:
    """Path -> (choices, index of the chosen one, limit)."""
    if limit is None:
        free = next((c for c in mine if not c.is_fixed), None)
        if free is not None:
            raise BudgetError(
                message(
                    path=free.target.path,
                    got="neither a budget nor a rank",
                    expected="one of the two",
                    todo="Pass budget=Budget(keep=0.5), or give the spec a rank.",
                )
            )
        return {c.target.path: (c, 0, None) for c in mine}
    currency = limit.currency
    demands = [c.demand(currency) for c in mine]
    money = _money(params, glob, limit, mine, matched)
    least = least_cost([d.costs for d in demands])
    if least > money:
        raise _unreachable(glob, limit, money, least, sum(d.dense_cost for d in demands))
    if allocation is None:
        allocation = Global() if all(d.is_output_loss for d in demands) else Uniform()
    picks = allocation.choose(demands, money)
    spent = sum(int(d.costs[j]) for d, j in zip(demands, picks, strict=True))
    if spent > money:
        raise _unreachable(glob, limit, money, spent, sum(d.dense_cost for d in demands))
    return {c.target.path: (c, j, limit) for c, j in zip(mine, picks, strict=True)}


def _money(
    params: Tree, glob: str, limit: Budget, mine: list[Choices], matched: list[Target]
) -> int:
    """What the group's matrices may cost together."""
    match limit.currency:
        case Currency.PARAMS:
            return int(float(limit.keep or 0) * sum(c.target.size for c in mine) + 1e-9)
        case Currency.FLOPS:
            return int(limit.flops or 0)
        case Currency.KV_BYTES:
            raise of_cache(limit)
        case Currency.BYTES:
            leaves, _ = trees.flatten(params)
            alias = trees.shared(params) | {t.path: t.shared for t in matched if t.shared}
            planned = {c.target.path for c in mine}
            rest = sum(
                leaf.nbytes
                for path, leaf in leaves.items()
                if trees.match(glob, path)
                and path not in planned
                # the lead of an alias that is planned under another path
                and path not in alias
                and not planned & {p for p, first in trees.shared(params).items() if first == path}
            )
            return int(limit.bytes or 0) - rest


def _unreachable(glob: str, limit: Budget, money: int, least: int, dense: int) -> BudgetError:
    reach = f"{least / max(dense, 1):.4f}" if limit.currency is Currency.PARAMS else f"{least:,}"
    asked = f"{limit.keep:g}" if limit.currency is Currency.PARAMS else f"{money:,}"
    what = {Currency.PARAMS: "keep", Currency.BYTES: "bytes for the matrices"}
    name = what.get(limit.currency, "FLOPs")
    return BudgetError(
        message(
            path=glob,
            got=f"{name} {asked}",
            expected=f"at least {reach}, the least that the rules can reach",
            todo="Raise the budget, lower `tile`, or let the rules match more weights.",
        )
    )


def _entry(t: Target, chosen: _Choice | None) -> Entry:
    itemsize = getattr(getattr(t.leaf, "dtype", None), "itemsize", 0)
    shape = tuple(np.shape(t.leaf))
    size = 0 if t.shared else t.size
    flops = 0 if t.shared or len(shape) < 2 else dense_flops(t)
    fields: dict[str, Any] = {
        "path": t.path,
        "shape": shape,
        "dtype": str(getattr(t.leaf, "dtype", type(t.leaf).__name__)),
        "layout": t.layout,
        "dense_params": size,
        "dense_bytes": size * itemsize,
        "dense_flops": flops,
        "shared": t.shared,
    }
    if chosen is None:
        kept = {"params": size, "bytes": size * itemsize, "flops": flops}
        return Entry(**fields, **kept, spec=None, kind=default_kind(None), reason=t.reason)
    c, j, limit = chosen
    others = rivals(c, j, Currency.PARAMS if limit is None else limit.currency)
    return Entry(
        **fields,
        spec=c.specs[j],
        kind=c.kind,
        params=int(c.params[j]),
        bytes=int(c.params[j]) * itemsize,
        flops=int(c.flops[j]),
        loss=float(c.error[j]),
        total=c.total,
        candidate=int(c.origin[j]),
        sensitivity=None if c.sensitivity is None or c.specs[j] is None else float(c.scale[j]),
        reason=why(c, j, others, limit),
        rivals=others,
    )
