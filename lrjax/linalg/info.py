"""What a solver says beside its factors: true residual, iterations, status, certificate."""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np


class Status(enum.IntEnum):
    """How a solve ended; `message` says it in words."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    RANK_DEFICIENT = 2
    NON_FINITE = 3

    @property
    def message(self) -> str:
        """The status as one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged",
    Status.MAX_ITERATIONS: "stopped at the iteration limit before converging",
    Status.RANK_DEFICIENT: (
        "the input has a lower numerical rank than asked for: the factors are right, the surplus "
        "singular values are zero to working precision, a smaller rank does as well"
    ),
    Status.NON_FINITE: "the input holds NaN or infinity: the factors are zero",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Info:
    """The record of a solve; every field but a None has the stack axes [*S] of the input.

    Attributes:
        residual: norm of what the factors miss, in the metric of the solve, from the difference
            itself and not from a cancelling formula; NaN where the input was not finite.
        iterations: block steps or sweeps taken; 1 for a direct method.
        status: the value of a `Status`.
        certificate: an a-posteriori bound where the theory gives one, else None.
    """

    residual: Any
    iterations: Any
    status: Any
    certificate: Any = None

    def message(self) -> str:
        """The worst status over the stack, in words; on the host only."""
        return Status(int(np.max(np.asarray(self.status), initial=0))).message
