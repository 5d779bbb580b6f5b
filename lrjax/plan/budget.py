"""Budgets: how much the compressed weights may cost, in one of four currencies."""

import dataclasses
import enum
import math
from typing import Any

from lrjax.errors import BudgetError, message


class Currency(enum.Enum):
    """What a budget counts."""

    PARAMS = "params"
    BYTES = "bytes"
    FLOPS = "flops"
    KV_BYTES = "kv_bytes"


@dataclasses.dataclass(frozen=True)
class Budget:
    """Exactly one limit on the cost after compression.

    Attributes:
        keep: share of the parameters of the matrices that the rules match, in (0, 1].
        bytes: bytes of the whole tree, unmatched leaves included; for one of several budgets, of
            all leaves that its glob matches.
        flops: FLOPs (two per multiply-add) of the matrices that the rules match, per activation
            row.
        kv_bytes: bytes that a decoder's cache holds of one token, all layers together; for
            `lrjax.restructure`, since a factored weight leaves the cache as it is.

    Raises:
        BudgetError: none or several limits are given, or one is out of range.
    """

    keep: float | int | None = None
    bytes: int | None = None
    flops: int | None = None
    kv_bytes: int | None = None

    def __post_init__(self):
        given = {k: v for k, v in vars(self).items() if v is not None}
        if len(given) != 1:
            raise BudgetError(
                message(
                    got=", ".join(given) or "no limit",
                    expected=f"exactly one of {', '.join(vars(self))}",
                    todo="Write for example Budget(keep=0.5).",
                )
            )
        ((name, value),) = given.items()
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        finite = number and math.isfinite(value) and value > 0
        if not finite or (name == "keep" and value > 1):
            limit = "a share in (0, 1]" if name == "keep" else "a positive number"
            raise BudgetError(
                message(got=f"{name}={value!r}", expected=limit, todo="Correct the budget.")
            )

    @property
    def currency(self) -> Currency:
        """What the limit counts."""
        if self.keep is not None:
            return Currency.PARAMS
        return Currency(next(iter(self.to_json())))

    def to_json(self) -> dict[str, Any]:
        """The budget as a JSON object: its one limit."""
        return {k: v for k, v in vars(self).items() if v is not None}

    def __str__(self) -> str:
        ((name, value),) = self.to_json().items()
        return f"{name} {value:g}" if name == "keep" else f"{name} {int(value):,}"


def of_cache(limit: object) -> BudgetError:
    """The error where weights are to meet a budget of the cache's bytes."""
    got, expected = f"a budget of {limit}", "one that factored weights can meet"
    todo = "A cache shrinks by the structure of attention: lrjax.restructure and LatentKV."
    return BudgetError(message(got=got, expected=expected, todo=todo))
