"""How a budget is shared out: the same share for every weight, or by marginal gain."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from lrjax.plan.knapsack import knapsack


@dataclasses.dataclass(frozen=True)
class Demand:
    """What one weight asks of the allocation.

    Attributes:
        costs: cost of each option [k], in the budget's currency.
        errors: its calibrated loss [k].
        dense_cost: cost of the weight as it is.
        total: loss of dropping the weight altogether.
        is_output_loss: whether the loss is the model's own (two-sided, or by Fisher information),
            not the weight's output.
    """

    costs: np.ndarray
    errors: np.ndarray
    dense_cost: int
    total: float
    is_output_loss: bool


class Scale(ABC):
    """Puts the losses of different weights on a common scale."""

    @abstractmethod
    def factors(self, demands: Sequence[Demand]) -> list[float]:
        """What each weight's losses are multiplied by."""


@dataclasses.dataclass(frozen=True)
class Relative(Scale):
    """Losses relative to dropping the whole weight: comparable whatever the metric's unit."""

    def factors(self, demands):
        """One over the total loss; zero where nothing could be lost."""
        return [1 / d.total if d.total > 0 else 0.0 for d in demands]


@dataclasses.dataclass(frozen=True)
class Absolute(Scale):
    """Losses as they are, per token of the calibration: right for two-sided metrics."""

    def factors(self, demands):
        """One."""
        return [1.0] * len(demands)


@dataclasses.dataclass(frozen=True)
class Auto(Scale):
    """Absolute where every weight's metric is two-sided (the model's own loss), else Relative."""

    def factors(self, demands):
        """The factors of the scale that fits."""
        scale = Absolute() if all(d.is_output_loss for d in demands) else Relative()
        return scale.factors(demands)


class Allocation(ABC):
    """Chooses one option for each weight within a budget."""

    @abstractmethod
    def choose(self, demands: Sequence[Demand], budget: int) -> list[int]:
        """Index of each weight's option; the budget is at least that of the cheapest choice."""


@dataclasses.dataclass(frozen=True)
class Uniform(Allocation):
    """The same share of its dense cost for every weight; the cheapest option where none fits."""

    def choose(self, demands, budget):
        """Least error within each weight's own share."""
        share = budget / max(sum(d.dense_cost for d in demands), 1)
        choice = []
        for d in demands:
            fits = np.flatnonzero(d.costs <= share * d.dense_cost + 1e-9)
            pool = fits if len(fits) else np.flatnonzero(d.costs == d.costs.min())
            choice.append(int(pool[np.lexsort((d.costs[pool], d.errors[pool]))[0]]))
        return choice


@dataclasses.dataclass(frozen=True)
class Global(Allocation):
    """Least total loss over all weights, by marginal gain per unit of the budget's currency.

    Attributes:
        scale: how the losses of different weights compare.
    """

    scale: Scale = Auto()

    def choose(self, demands, budget):
        """Water-filling on convex hulls, then the exact optimum."""
        factors = self.scale.factors(demands)
        errors = [f * d.errors for f, d in zip(factors, demands, strict=True)]
        return knapsack([d.costs for d in demands], errors, budget)
