"""A kind: the static recipe from a weight's statistics to its metric."""

import dataclasses
import enum
from abc import ABC, abstractmethod
from typing import Any

from lrjax.errors import StatsError, message
from lrjax.metrics.metric import Metric
from lrjax.metrics.moments import Moments, WeightStats
from lrjax.metrics.shrinkage import Shrinkage, shrinkage_from_json


class Need(enum.Enum):
    """A statistic that a kind is bound from, and what `calibrate` is asked to have it."""

    INPUTS = "lrjax.calibrate(apply, params, batches)"
    GRADIENTS = "lrjax.calibrate(..., loss=...) or probes=..."
    MAGNITUDES = "lrjax.calibrate(..., magnitudes=True)"
    ROW_FISHER = "lrjax.calibrate(..., loss=..., fisher=Fisher(elements=False))"
    ELEMENT_FISHER = "lrjax.calibrate(..., loss=..., fisher=Fisher())"


class Kind(ABC):
    """Static, hashable recipe from a weight's statistics to its metric: frozen dataclasses."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """The statistics that it is bound from."""
        return ()

    @property
    def is_model_loss(self) -> bool:
        """Whether losses are the model's own to second order: then those of all weights add up."""
        return False

    @abstractmethod
    def bind(
        self, stats: WeightStats | None, shape: tuple[int, int], *, path: str = "weight"
    ) -> Metric:
        """The metric of a weight whose matrix is `shape` = (m, n).

        Raises:
            StatsError: the statistics lack a side, or belong to a weight of another shape.
        """

    def to_json(self) -> dict[str, Any]:
        """The kind as a JSON object: its class name and its fields."""
        names = [f.name for f in dataclasses.fields(self)]  # pyright: ignore
        plain = lambda x: x.to_json() if isinstance(x, Shrinkage) else x
        return {"kind": type(self).__name__, **{k: plain(getattr(self, k)) for k in names}}


def kind_from_json(data: dict[str, Any]) -> Kind:
    """The kind that `Kind.to_json` described; user-defined kinds must be imported before.

    Raises:
        StatsError: no such kind is known.
    """
    fields = dict(data)
    name = fields.pop("kind", None)
    known = {kind.__name__: kind for kind in _descendants(Kind)}
    if name not in known:
        raise StatsError(
            message(
                got=f"metric kind {name!r}",
                expected="one of " + ", ".join(sorted(known)),
                todo="import the module that defines it",
            )
        )
    rules = lambda x: shrinkage_from_json(x) if isinstance(x, dict) else x
    return known[name](**{field: rules(value) for field, value in fields.items()})


def _descendants(cls: type) -> list[type]:
    return [d for sub in cls.__subclasses__() for d in (sub, *_descendants(sub))]


def has_bias(stats: WeightStats | None) -> bool:
    """Whether to centre: it is free only where a bias can take the mean's part."""
    return stats is not None and stats.bias is not None


def need_moments(stats: WeightStats | None, side: str, size: int, path: str) -> Moments:
    """The moments of one side; StatsError where they are missing or of another size."""
    moments = None if stats is None else getattr(stats, side)
    what = {"rows": "input", "cols": "output-gradient"}[side]
    if moments is None:
        raise missing(path, what, {"rows": Need.INPUTS, "cols": Need.GRADIENTS}[side])
    if moments.size != size:
        raise misfit(path, f"{what} statistics of size {moments.size}", f"size {size}")
    return moments


def missing(path: str, what: str, need: Need) -> StatsError:
    """The error for a statistic that calibration was not asked for."""
    return StatsError(
        message(
            path=path,
            got=f"no {what} statistics",
            expected=f"those of {need.value}",
            todo="Calibrate so, or choose another metric.",
        )
    )


def misfit(path: str, got: str, expected: str) -> StatsError:
    """The error for statistics of a weight of another shape."""
    return StatsError(
        message(
            path=path,
            got=got,
            expected=f"{expected}, as the weight's matrix",
            todo="Calibrate with the model that is compressed.",
        )
    )
