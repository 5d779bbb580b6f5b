"""The metric of element-wise weights, which no pair of sides can express."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.metrics.metric import Metric
from lrjax.metrics.separable import separable_sides


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elements(Metric):
    """loss(D) = sum_ij F_ij D_ij^2: the importance of every entry, e.g. its Fisher information.

    Attributes:
        weights: F >= 0, [*S, m, n]; 0 and 1 make matrix completion.
    """

    weights: Any = None

    def arrays(self) -> tuple[Array | None, Array | None]:
        """The nearest separable weights r c', as diagonals: what whitening can use."""
        return separable_sides(self.weights)

    def broadcast(self, stack: tuple[int, ...]) -> "Elements":
        """The metric with its weights spread to the stack axes."""
        trailing = self.weights.shape[-2:]
        return dataclasses.replace(
            self, weights=jnp.broadcast_to(self.weights, (*stack, *trailing))
        )

    def loss(self, delta: Float[Array, "*S m n"]) -> Float[Array, "*S"]:
        """sum_ij F_ij D_ij^2 per stack entry, in float32; entries without weight may be NaN."""
        delta = jnp.where(self.weights > 0, delta.astype(jnp.float32), 0)
        return jnp.sum(self.weights * delta**2, axis=(-2, -1))
