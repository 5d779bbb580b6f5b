"""Trials: what each candidate format really loses, so that bounds do not decide between formats.

Before a solve a format's loss is a bound, or an estimate: the tails of a Tucker form overrate it,
a metric that is no Kronecker product may do either. Of weights with several candidates each is
solved once, near its share of the budget, and its curve is brought to what was measured.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.decompose import Spec, solve
from lrjax.errors import RuleError
from lrjax.metrics import Metric
from lrjax.ops import densify
from lrjax.plan.batching import grouped
from lrjax.plan.binding import Bound, stacked
from lrjax.plan.budget import Currency
from lrjax.plan.options import Choices

TRIALS = 4
"""Weights of one shape that are tried; the others take the mean of their corrections."""


@dataclasses.dataclass(frozen=True)
class _Try:
    """One candidate of one weight: the options that are its own, and the one nearest its share."""

    choices: Choices
    candidate: int
    own: np.ndarray
    spec: Spec
    cost: int

    @property
    def family(self) -> Spec:
        return self.choices.target.specs[self.candidate]


def corrected(
    mine: Sequence[Choices], bounds: dict[str, Bound], currency: Currency, share: float
) -> list[Choices]:
    """The choices, the curves of competing candidates scaled to measured losses.

    Args:
      mine: the choices of each weight.
      bounds: path -> matrices and metric, as they were measured.
      currency: what the budget counts.
      share: of the dense cost, near which candidates are tried.
    """
    tries = [t for c in mine for t in _tries(c, currency, share)]
    errors = {c.target.path: c.error.copy() for c in mine}
    for group in grouped(tries, lambda t: (t.family, bounds[t.choices.target.path].key)):
        pick = np.unique(np.linspace(0, len(group) - 1, min(TRIALS, len(group))).round()).astype(
            int
        )
        spec = group[pick[0]].spec
        lost = _measure(spec, [bounds[group[i].choices.target.path] for i in pick])
        if lost is None:
            continue
        predicted = np.array([_predicted(group[i], group[pick[0]].cost, currency) for i in pick])
        usable = (predicted > 0) & (lost > 0)
        if not usable.any():
            continue
        ratios = np.where(usable, lost / np.where(usable, predicted, 1), 1.0)
        mean = float(np.exp(np.mean(np.log(ratios[usable]))))
        for i, t in enumerate(group):
            own = float(ratios[list(pick).index(i)]) if i in pick else mean
            errors[t.choices.target.path][t.own] *= own
    return [dataclasses.replace(c, error=errors[c.target.path]) for c in mine]


def _tries(c: Choices, currency: Currency, share: float) -> list[_Try]:
    if len(c.target.specs) < 2:
        return []
    costs, found = c.costs(currency), []
    limit = share * c.demand(currency).dense_cost
    for candidate, spec in enumerate(c.target.specs):
        own = np.flatnonzero(c.origin == candidate)
        if not len(own) or spec.is_exact:
            continue
        fits = own[costs[own] <= limit]
        at = fits[np.argmin(c.error[fits])] if len(fits) else own[np.argmin(costs[own])]
        chosen = c.specs[at]
        assert chosen is not None
        found.append(_Try(c, candidate, own, chosen, int(costs[at])))
    return found


def _predicted(t: _Try, cost: int, currency: Currency) -> float:
    """The curve's loss at a cost, on a line between its options."""
    costs = t.choices.costs(currency)[t.own].astype(float)
    order = np.argsort(costs, kind="stable")
    errors = np.minimum.accumulate(t.choices.error[t.own][order])
    return float(np.interp(cost, costs[order], errors))


def _measure(spec: Spec, bounds: Sequence[Bound]) -> np.ndarray | None:
    """What a solve of each weight loses; None where the spec has no solver."""
    try:
        return np.asarray(_lost(spec, *stacked(bounds)), np.float64)
    except RuleError:
        return None


@partial(jax.jit, static_argnums=0)
def _lost(spec: Spec, w: jax.Array, metric: Metric) -> Any:
    factors, _ = solve(spec, w, metric=metric)
    rebuilt = densify(jax.tree.map(lambda x: x.astype(jnp.float32), factors))
    lost = metric.loss(w.astype(jnp.float32) - rebuilt)
    return jnp.sum(lost.reshape(lost.shape[0], -1), axis=1)
