"""Kinds of importance: how far the loss, or the input's size, hangs on each entry or row."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lrjax.metrics.elements import Elements
from lrjax.metrics.kind import Kind, Need, misfit, missing, need_moments
from lrjax.metrics.metric import Diagonal, Metric
from lrjax.metrics.moments import SquaredGradients, WeightStats


@dataclasses.dataclass(frozen=True)
class FWSVD(Kind):
    """loss(D) = sum_i F_i |D_i|^2, F_i the Fisher information of input row i (arXiv:2207.00112).

    With I = diag(F^.5) and I W = U S V' the factors are I^-1 U_k S_k = W V_k and V_k': the inverse
    cancels, so a row without Fisher information is projected like the others.

    Attributes:
        shrink: moves F towards its mean, so that rows the sample did not move count a little.
    """

    shrink: float = 0.0

    @property
    def needs(self):
        """The rows' Fisher information; the elements' has it too."""
        return (Need.ROW_FISHER,)

    @property
    def is_model_loss(self):
        """It is, with entries taken as independent and alike in each row."""
        return True

    def bind(self, stats, shape, *, path="weight"):
        """F on the rows, in the unit of the loss: means over the columns.

        Raises StatsError without Fisher information of the right size.
        """
        rows = _fisher(stats, path, Need.ROW_FISHER).rows
        _check(path, rows.shape[-1:], shape[:1])
        return Metric(Diagonal(_shrunk(rows / shape[1], self.shrink, axes=(-1,))))


@dataclasses.dataclass(frozen=True)
class TFWSVD(Kind):
    """loss(D) = sum_ij F_ij D_ij^2, F_ij the Fisher information of each entry (arXiv:2211.09718).

    `WeightedLowRank` solves it; `SVD` takes the nearest separable weights instead.

    Attributes:
        shrink: moves F towards its mean, so that entries the sample did not move count a little.
    """

    shrink: float = 0.0

    @property
    def needs(self):
        """The entries' Fisher information."""
        return (Need.ELEMENT_FISHER,)

    @property
    def is_model_loss(self):
        """It is, with entries taken as independent."""
        return True

    def bind(self, stats, shape, *, path="weight"):
        """F as `Elements`; raises StatsError without Fisher information of the right size."""
        fisher = _fisher(stats, path, Need.ELEMENT_FISHER)
        if not fisher.elements:
            raise missing(path, "element Fisher (only the rows')", Need.ELEMENT_FISHER)
        _check(path, fisher.mean.shape[-2:], shape)
        return Elements.of(_shrunk(fisher.mean, self.shrink, axes=(-2, -1)))


@dataclasses.dataclass(frozen=True)
class ASVD(Kind):
    """loss(D) = |S D|^2, S = diag((E|x_i|)^alpha): inputs of large activations (arXiv:2312.05821).

    Attributes:
        alpha: 0 is the Frobenius norm; the paper takes 0.5.
    """

    alpha: float = 0.5

    @property
    def needs(self):
        """The inputs' magnitudes."""
        return (Need.MAGNITUDES,)

    def bind(self, stats, shape, *, path="weight"):
        """S^2 on the rows; raises StatsError without magnitudes of the right size."""
        rows = need_moments(stats, "rows", shape[0], path)
        if rows.magnitude is None:
            raise missing(path, "input-magnitude", Need.MAGNITUDES)
        return Metric(Diagonal(rows.magnitude.astype(jnp.float32) ** (2 * self.alpha)))


def _fisher(stats: WeightStats | None, path: str, need: Need) -> SquaredGradients:
    if stats is None or stats.fisher is None:
        raise missing(path, "Fisher", need)
    return stats.fisher


def _check(path: str, got: Any, expected: Any) -> None:
    if tuple(got) != tuple(expected):
        raise misfit(path, f"Fisher information of shape {tuple(got)}", f"shape {tuple(expected)}")


def _shrunk(values: Array, shrink: float, axes: tuple[int, ...]) -> Array:
    values = values.astype(jnp.float32)
    if not shrink:
        return values
    return (1 - shrink) * values + shrink * jnp.mean(values, axis=axes, keepdims=True)
