"""What one weight sees: second moments of its inputs and output gradients, squared gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lrjax.metrics.metric import Diagonal, Gram
from lrjax.metrics.shrinkage import Shrinkage, merge_scatters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Second moment of a vector z [*S, d] over `count` tokens, normalised: second = E[z z'].

    Attributes:
        count: number of tokens, for each stack entry, [*S] or [].
        mean: E[z] [*S, d]; None where it was not kept.
        second: E[z z'] [*S, d, d], or its diagonal [*S, d] if `diagonal`.
        diagonal: only the diagonal is stored (looked-up rows: the tokens' frequencies).
        magnitude: E|z| [*S, d]; None where it was not asked for.
        scatter: how far examples lie apart; None where only the diagonal is stored.
    """

    count: Any
    mean: Any
    second: Any
    diagonal: bool = dataclasses.field(default=False, metadata={"static": True})
    magnitude: Any = None
    scatter: Any = None

    @property
    def size(self) -> int:
        """Length d of the vector."""
        return self.second.shape[-1]

    def side(self, *, center: bool = False, shrink: float | Shrinkage = 0.0) -> Diagonal | Gram:
        """The moment as one side of a metric, [*S, d, d] or [*S, d].

        With C = E[z z'] - E[z] E[z]' (E[z] is zero where it was not kept) it is
        C + r (tr(C) / d I - C), and unless `center` E[z] E[z]' again: the unit of the loss stays,
        and the mean, which a few tokens show well, is not shrunk.

        Args:
            center: leave the mean's part out.
            shrink: r in [0, 1], or the rule that finds it; of a diagonal, rules find 0.
        """
        second = self.second.astype(jnp.float32)
        covariance = second if self.mean is None else second - self._mean_part()
        given = covariance if center else second
        if self.diagonal:
            share = 0.0 if isinstance(shrink, Shrinkage) else shrink
            level = jnp.mean(covariance, axis=-1, keepdims=True)
            return Diagonal(jnp.maximum(given + share * (level - covariance), 0.0))
        if isinstance(shrink, Shrinkage):
            share = shrink.share(covariance, self.count, self.scatter)[..., None, None]
        elif shrink:
            share = shrink
        else:
            return Gram(given)
        level = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / self.size
        return Gram(given + share * (level * jnp.eye(self.size) - covariance))

    def _mean_part(self) -> Array:
        mean = self.mean.astype(jnp.float32)
        return mean**2 if self.diagonal else mean[..., :, None] * mean[..., None, :]


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together, by count: (n_a A + n_b B) / (n_a + n_b).

    Normalised means are merged, never sums, so float32 stays accurate over any number of tokens.
    """
    total = a.count + b.count
    share = b.count / jnp.where(total > 0, total, 1.0)

    def mix(x: Array, y: Array) -> Array:
        return x + jnp.reshape(share, share.shape + (1,) * (x.ndim - share.ndim)) * (y - x)

    some = lambda x, y: None if x is None or y is None else mix(x, y)
    mean, magnitude = some(a.mean, b.mean), some(a.magnitude, b.magnitude)
    known = a.scatter is not None and b.scatter is not None
    scatter = merge_scatters(a.scatter, b.scatter) if known else None  # pyright: ignore
    return Moments(total, mean, mix(a.second, b.second), a.diagonal, magnitude, scatter)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SquaredGradients:
    """Mean over examples of the squared gradient of each one's own loss: diagonal Fisher.

    The gradient of an example is the sum over its tokens, X'G; the square is taken after it.

    Attributes:
        count: number of examples.
        mean: E[(X'G)_ij^2] [*S, m, n], or its sums over j, the rows' [*S, m].
        elements: which of the two it is.
        labels: where the labels came from: "given" (empirical Fisher), "drawn" from the model
            (true Fisher), or "probes" of the outputs (Gauss-Newton).
    """

    count: Any
    mean: Any
    elements: bool = dataclasses.field(default=True, metadata={"static": True})
    labels: str = dataclasses.field(default="given", metadata={"static": True})

    @property
    def rows(self) -> Array:
        """Row sums sum_j E[(X'G)_ij^2], [*S, m]."""
        return jnp.sum(self.mean, axis=-1) if self.elements else self.mean


def merge_squares(a: SquaredGradients, b: SquaredGradients) -> SquaredGradients:
    """The squares of both samples together, by count."""
    total = a.count + b.count
    share = b.count / jnp.where(total > 0, total, 1.0)
    return dataclasses.replace(a, count=total, mean=a.mean + share * (b.mean - a.mean))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightStats:
    """What one weight W [*S, m, n] sees: `rows` its inputs (m), `cols` its output gradients (n).

    Attributes:
        rows: Moments of the inputs; for a looked-up table the frequencies of its rows.
        cols: Moments of the loss's gradient at the outputs, per token; None if not calibrated.
        bias: path of the bias that is added to the weight's output, if there is one.
        fisher: SquaredGradients of the weight itself; None if not asked for.
    """

    rows: Any = None
    cols: Any = None
    bias: str | None = dataclasses.field(default=None, metadata={"static": True})
    fisher: Any = None
