"""Kinds of second moments: of the inputs alone, or of inputs and output gradients."""

import dataclasses

from lrjax.metrics.kind import Kind, Need, has_bias, need_moments
from lrjax.metrics.metric import Metric
from lrjax.metrics.moments import WeightStats
from lrjax.metrics.shrinkage import LedoitWolf, Shrinkage


@dataclasses.dataclass(frozen=True)
class Frobenius(Kind):
    """loss(D) = |D|^2: every entry counts alike; needs no statistics."""

    def bind(self, stats, shape, *, path="weight"):
        """The identity on both sides."""
        return Metric()


@dataclasses.dataclass(frozen=True)
class Input(Kind):
    """loss(D) = E|x D|^2: squared change of the output, A = E[x x'] on the rows.

    The metric of DRONE, SVD-LLM (arXiv:2403.07378) and Swift-SVD (arXiv:2604.01609). With
    `center`, A is the covariance and the bias takes the mean's part (AFM: Yu and Wu, 2023).
    `shrink` moves the covariance towards its mean diagonal, by a share or by a rule.
    """

    center: bool = False
    shrink: float | Shrinkage = 0.0

    @property
    def needs(self):
        """The inputs."""
        return (Need.INPUTS,)

    def bind(self, stats, shape, *, path="weight"):
        """A on the rows; raises StatsError without input statistics of the right size."""
        rows = need_moments(stats, "rows", shape[0], path)
        center = self.center and has_bias(stats)
        return Metric(
            rows.side(center=center, shrink=self.shrink), None, rows.mean if center else None
        )


@dataclasses.dataclass(frozen=True)
class TwoSided(Kind):
    """loss(D) = tr(D' A D G), A = E[x x'], G = E[g g']: the loss's own second-order change (K-FAC).

    Inputs and output gradients are taken per token and as independent (arXiv:1503.05671); used for
    factoring by KFAC-SVD. `center` as in `Input`; each side may shrink, by a share or by a rule.
    """

    center: bool = False
    shrink_rows: float | Shrinkage = 0.0
    shrink_cols: float | Shrinkage = 0.0

    @property
    def needs(self):
        """Inputs and output gradients."""
        return Need.INPUTS, Need.GRADIENTS

    @property
    def is_model_loss(self):
        """It is."""
        return True

    def bind(self, stats, shape, *, path="weight"):
        """A on the rows, G on the cols; raises StatsError where one is missing or misfits."""
        rows = need_moments(stats, "rows", shape[0], path)
        cols = need_moments(stats, "cols", shape[1], path)
        center = self.center and has_bias(stats)
        return Metric(
            rows.side(center=center, shrink=self.shrink_rows),
            cols.side(shrink=self.shrink_cols),
            rows.mean if center else None,
        )


def default_kind(stats: WeightStats | None) -> Kind:
    """The kind that uses all a weight's statistics: TwoSided, else Input, else Frobenius.

    Centred, for it costs nothing and helps; a weight without a bias is not centred all the same.
    Shrunk by `LedoitWolf`: with few examples it decides, with many it does nothing.
    """
    if stats is None or stats.rows is None:
        return Frobenius()
    rule = LedoitWolf()
    if stats.cols is None:
        return Input(center=True, shrink=rule)
    return TwoSided(center=True, shrink_rows=rule, shrink_cols=rule)
