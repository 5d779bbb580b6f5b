"""How far to cut: one size for all modules, or sizes by marginal error within one budget."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lrjax.errors import BudgetError, RankError, message
from lrjax.plan import Global
from lrjax.plan.allocation import Demand
from lrjax.restructure.structure import Structure


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a cut of one module loses and costs, at every size from one to the whole.

    Attributes:
        errors: calibrated error at sizes 1, 2, ..., n, in steps; falling, zero at n.
        total: the error of dropping all of it.
        cost: parameters for each unit of size.
        is_output_loss: whether the errors are the model's own loss, comparable between modules.
        step: the units in one step, which stay or leave together.
    """

    errors: np.ndarray
    total: float
    cost: int
    is_output_loss: bool = False
    step: int = 1

    @property
    def whole(self) -> int:
        """The size of the module as it is."""
        return len(self.errors) * self.step

    def at(self, sizes: np.ndarray) -> np.ndarray:
        """The errors at some sizes."""
        return self.errors[sizes // self.step - 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut(Structure):
    """Base of the structures that make something smaller: exactly one of ``size`` and ``keep``.

    Attributes:
        size: the new size of every module.
        keep: share of the matched parameters that stay, shared out among all modules of the rule
            so that the calibrated error, relative to each module's own, is least.
        uniform: the same share in every module, so that published architectures allow the result.
        multiple: sizes are multiples of this, or whole.
    """

    size: int | None = None
    keep: float | None = None
    uniform: bool = False
    multiple: int = 1

    def __post_init__(self) -> None:
        share = self.keep is not None and 0 < self.keep <= 1
        count = self.size is not None and self.size >= 1
        if (self.size is None) == (self.keep is None) or not (share or count):
            got = f"size={self.size}, keep={self.keep}"
            expected = "one of a size of at least 1 and a share in (0, 1]"
            raise BudgetError(message(got=got, expected=expected, todo="Give either."))
        if self.multiple < 1:
            got, todo = f"multiple={self.multiple}", "Leave it out for any size."
            raise BudgetError(message(got=got, expected="at least 1", todo=todo))

    def choose(self, curves: Sequence[Curve]) -> list[int]:
        """The size of every module.

        Raises:
            RankError: a size above the whole.
            BudgetError: not even the least sizes fit.
        """
        if self.size is not None:
            least = min(c.whole for c in curves)
            if self.size > least:
                got, expected = f"a size of {self.size}", f"at most {least}, what is there"
                raise RankError(message(got=got, expected=expected, todo="Choose a smaller one."))
            step = max(c.step for c in curves)
            if self.size % step:
                got, expected = f"a size of {self.size}", f"a multiple of {step}"
                raise RankError(message(got=got, expected=expected, todo="Choose such a size."))
            return [self.size] * len(curves)
        options = [self._options(c) for c in curves]
        share = self.keep or 1.0
        if self.uniform:
            return [
                int(max(own[own <= share * c.whole + 1e-9], default=own[0]))
                for own, c in zip(options, curves, strict=True)
            ]
        demands = [
            Demand(c.cost * own, c.at(own), c.cost * c.whole, c.total, c.is_output_loss)
            for own, c in zip(options, curves, strict=True)
        ]
        budget = int(share * sum(d.dense_cost for d in demands) + 1e-9)
        least = sum(int(d.costs[0]) for d in demands)
        if budget < least:
            got, expected = f"keep={share:g}, {budget} parameters", f"at least {least}"
            todo = "Keep more, or choose a smaller multiple."
            raise BudgetError(message(got=got, expected=expected, todo=todo))
        picks = Global().choose(demands, budget)
        return [int(own[k]) for own, k in zip(options, picks, strict=True)]

    def _options(self, curve: Curve) -> np.ndarray:
        least = math.lcm(self.multiple, curve.step)
        return np.unique([*range(least, curve.whole + 1, least), curve.whole])
