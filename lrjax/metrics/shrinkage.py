"""How far a second moment of few examples moves towards a multiple of the identity.

A Gram of few texts calls every direction free that these texts did not take, and factors fitted
under it lose there what other texts need.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import StatsError, message


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scatter:
    """How far one example's second moment lies from the next one's.

    Examples are independent where their tokens are not: each is one draw of C = sum_t z_t z_t', z
    its tokens about the mean of their batch. What the means of batches lie apart is in the moment
    alone; `error` adds it.

    Attributes:
        examples: number B of examples with a token, [*S] or [].
        square: mean over examples of |C|_F^2, [*S] or [].
        trace: mean over examples of tr C, [*S] or []; None where batches have no means.
    """

    examples: Any
    square: Any
    trace: Any = None

    def error(
        self, second: Float[Array, "*S d d"], count: Float[Array, "*S"]
    ) -> Float[Array, "*S"]:
        """Estimate of E|S - Sigma|_F^2 / |S|_F^2 of S = sum_b C_b / n, B examples of n tokens.

        ((B / n)^2 E|C|^2 - |S|^2) / (B - 1): the variance of a mean; 0 where it is not known.
        """
        norm = jnp.sqrt(jnp.sum(second**2, axis=(-2, -1)))
        share = self.examples / _positive(count * norm)
        each = (share * jnp.sqrt(self.square)) ** 2 + self._apart(second, norm, share)
        known = (self.examples > 1) & (norm > 0)
        return jnp.where(known, jnp.maximum(each - 1, 0) / _positive(self.examples - 1), 0.0)

    def _apart(self, second: Array, norm: Array, share: Array) -> Array:
        """What E|C|^2 lacks for batches' means d about the whole's, in the unit of |S|^2.

        C + n d d' has 2 n d'C d + n^2 |d|^4 more. The trace that S has beyond C is that of n d d';
        d is taken as normal, of a covariance like S.
        """
        if self.trace is None:
            return jnp.zeros(())
        whole, own = jnp.trace(second, axis1=-2, axis2=-1) / _positive(norm), share * self.trace
        beyond = jnp.maximum(whole - own, 0)
        flat = 1 / _positive(whole) ** 2  # |S|^2 / tr(S)^2
        return 2 * flat * own * beyond + (1 + 2 * flat) * beyond**2


def merge_scatters(a: Scatter, b: Scatter) -> Scatter:
    """The scatter of both samples together, by examples."""
    total = a.examples + b.examples
    share = b.examples / _positive(total)
    mix = lambda x, y: x + share * (y - x)
    known = a.trace is not None and b.trace is not None
    return Scatter(total, mix(a.square, b.square), mix(a.trace, b.trace) if known else None)


class Shrinkage(ABC):
    """Rule that finds the share r of S' = (1 - r) S + r tr(S) / d I: a frozen dataclass."""

    @abstractmethod
    def share(
        self, second: Float[Array, "*S d d"], count: Float[Array, "*S"], scatter: Scatter | None
    ) -> Float[Array, "*S"]:
        """The share of each matrix, in [0, 1].

        Args:
            second: S, about the mean.
            count: tokens that it is the mean over.
            scatter: how far examples lie apart, if the calibration kept it.
        """

    def to_json(self) -> dict[str, Any]:
        """The rule as a JSON object: its class name and its fields."""
        return {"shrinkage": type(self).__name__, **dataclasses.asdict(self)}  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class LedoitWolf(Shrinkage):
    """r = E|S - Sigma|^2 / |S - tr(S) / d I|^2, the least expected error |S' - Sigma|_F.

    Ledoit and Wolf, 2004 (doi:10.1016/S0047-259X(03)00096-4), whose samples here are the examples
    and not their tokens. It vanishes as examples grow in number. Zero where there is no scatter to
    estimate it from: one example, a diagonal, a tied table.
    """

    def share(self, second, count, scatter):
        """The estimate, cut to [0, 1]."""
        if scatter is None:
            return jnp.zeros(second.shape[:-2])
        norm = jnp.sum(second**2, axis=(-2, -1))
        trace = jnp.trace(second, axis1=-2, axis2=-1)
        # |S - tr(S) / d I|^2 / |S|^2
        apart = 1 - trace**2 / (second.shape[-1] * _positive(norm))
        return jnp.clip(scatter.error(second, count) / _positive(apart), 0.0, 1.0)


def shrinkage_from_json(data: dict[str, Any]) -> Shrinkage:
    """The rule that `Shrinkage.to_json` described; rules of your own must be imported before.

    Raises:
        StatsError: no such rule is known.
    """
    fields = dict(data)
    name = fields.pop("shrinkage", None)
    known = {rule.__name__: rule for rule in Shrinkage.__subclasses__()}
    if name in known:
        return known[name](**fields)
    raise StatsError(
        message(
            got=f"shrinkage {name!r}",
            expected="one of " + ", ".join(sorted(known)),
            todo="import the module that defines it",
        )
    )


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1.0)
