"""Rules that read ranks off a weight's own spectra, in place of a budget."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from lrjax.errors import RankError, RuleError, message
from lrjax.linalg.evbmf import evbmf

ROUNDING = 1e-7
"""Singular values of a Gram in float64 say nothing below 1e-8 of the largest."""


class RankRule(ABC):
    """Static, hashable: a rank for a matrix. A format asks for one rank an unfolding."""

    @abstractmethod
    def rank(self, w: np.ndarray) -> int:
        """The rank of matrices [*S, m, n] that share one: what the most demanding one needs."""

    def to_json(self) -> dict[str, Any]:
        """The rule as a JSON object: its class name and its fields."""
        return {"rule": type(self).__name__, **dataclasses.asdict(self)}  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class EVBMF(RankRule):
    """As many directions as stand out of the noise: `lrjax.linalg.evbmf` on the plain weight.

    It needs no budget and no tolerance. Trained weights are no planted signal in white noise: take
    the rank as the data's own suggestion, and read the report for what it costs.

    Attributes:
        center: judge the noise by the weight without its mean row, which is no noise; where it
            stands out of it the mean counts as a direction all the same, for factors carry it.
        minimum: least rank, also of pure noise.
    """

    center: bool = True
    minimum: int = 1

    def rank(self, w: np.ndarray) -> int:
        """The largest of the matrices' ranks."""
        w = np.asarray(w, np.float64)
        own = singular_values(w)
        centred = singular_values(w - np.mean(w, axis=-2, keepdims=True)) if self.center else own
        threshold = evbmf(centred, w.shape[-2:]).threshold
        edge = np.maximum(threshold[..., None], ROUNDING * own[..., :1])
        return max(int(np.max(np.sum(own > edge, axis=-1), initial=0)), self.minimum)


@dataclasses.dataclass(frozen=True)
class Energy(RankRule):
    """The least rank that keeps a share of the sum of squared singular values.

    Attributes:
        keep: the share, in (0, 1].

    Raises:
        RankError: the share is outside (0, 1].
    """

    keep: float = 0.9

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            todo = "Correct the share."
            raise RankError(message(got=f"keep={self.keep}", expected="(0, 1]", todo=todo))

    def rank(self, w: np.ndarray) -> int:
        """The largest of the matrices' ranks."""
        s = singular_values(np.asarray(w, np.float64))
        kept = np.cumsum(s**2, axis=-1)
        enough = kept >= self.keep * kept[..., -1:] * (1 - 1e-12)
        return int(np.max(np.argmax(enough, axis=-1), initial=0)) + 1


def singular_values(w: np.ndarray) -> np.ndarray:
    """All singular values, falling, from the Gram of the shorter side; below 1e-8 s_1 rounding."""
    wide = w.shape[-2] < w.shape[-1]
    other = np.swapaxes(w, -1, -2)
    gram = w @ other if wide else other @ w
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[..., ::-1], 0))


def rank_rule_from_json(data: Mapping[str, Any]) -> RankRule:
    """The rule that `RankRule.to_json` described.

    Raises:
      RuleError: no such rule is known, or it has no such field.
    """
    fields = dict(data)
    known = {cls.__name__: cls for cls in RankRule.__subclasses__()}
    name = fields.pop("rule", None)
    try:
        return known[name](**fields)  # pyright: ignore
    except (KeyError, TypeError) as e:
        todo = "Correct the name or the fields."
        expected = f"one of {', '.join(sorted(known))}"
        raise RuleError(message(got=f"rank rule {data!r}", expected=expected, todo=todo)) from e
