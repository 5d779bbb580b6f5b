"""Why an option was chosen: what every other candidate of the weight would have lost, in words."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from lrjax.decompose import Spec, spec_from_json
from lrjax.plan.budget import Budget, Currency
from lrjax.plan.options import Choices


@dataclasses.dataclass(frozen=True)
class Rival:
    """A candidate that was not chosen, at its best size among those that cost as little.

    Attributes:
        spec: the candidate, its rank fixed; as the rule has it, where it has no such size.
        loss: what it would lose, in the metric's unit, times its sensitivity over the chosen one's;
            None where it has no such size.
        params: its parameters; None likewise.
        why: why it has no such size.
    """

    spec: Spec
    loss: float | None = None
    params: int | None = None
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """The rival as a JSON object."""
        return {**vars(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The rival that `to_json` described."""
        return cls(**{**data, "spec": spec_from_json(data["spec"])})


def rivals(c: Choices, j: int, currency: Currency) -> tuple[Rival, ...]:
    """All candidates but that of option j: the least loss of each at the cost of j or less."""
    costs, scale, found = c.costs(currency), c.scale, []
    base = scale[j] or 1.0
    for candidate, spec in enumerate(c.target.specs):
        if candidate == c.origin[j]:
            continue
        own = np.flatnonzero((c.origin == candidate) & (costs <= costs[j]))
        if len(own):
            best = int(own[np.lexsort((costs[own], c.error[own]))[0]])
            sized = c.specs[best]
            assert sized is not None
            found.append(
                Rival(sized, float(c.error[best] * scale[best] / base), int(c.params[best]))
            )
        else:
            found.append(Rival(spec, why=c.refused.get(candidate, "too large")))
    return tuple(found)


def why(c: Choices, j: int, others: tuple[Rival, ...], limit: Budget | None) -> str:
    """Why option j, in one line: the budget, and what its rivals would have lost."""
    spec, base = c.specs[j], float(c.error[j])
    if c.is_fixed and spec is not None:
        ruled = c.origin[j] in c.target.ruled
        return "rank by its rule" if ruled else "fixed by its spec"
    sized = [r for r in others if r.loss is not None]
    no = "; ".join(f"{_name(r)}: {r.why}" for r in others if r.loss is None)
    no = f" ({no})" if no else ""
    if spec is None:
        if not sized:
            return f"dense: no candidate is smaller{no}"
        many = "; none of the candidates helps" if len(c.target.specs) > 1 else ""
        return f"dense: worth its cost{many}: {', '.join(_lost(r, c) for r in sized)}{no}"
    if len(c.target.specs) == 1:
        return str(limit)
    verdict = f"none helps, stays {_name(spec)}" if c.origin[j] == 0 else "least loss"
    said = ", ".join(f"{_name(r)} {_over(r, base)}" for r in sized)
    return f"{limit}; {verdict}" + (f": loss of {said}" if said else "") + no


def _over(r: Rival, base: float) -> str:
    """The rival's loss as a multiple."""
    return f"{(r.loss or 0.0) / base:.3g}x" if base > 0 else "above none"


def _lost(r: Rival, c: Choices) -> str:
    """The rival's loss as a share of the weight's, and its size."""
    share = (r.loss or 0.0) / c.total if c.total > 0 else 0.0
    return f"{_name(r)} loses {share:.1e} at keep {(r.params or 0) / c.target.size:.2f}"


def _name(x: Rival | Spec) -> str:
    return type(x.spec if isinstance(x, Rival) else x).__name__
