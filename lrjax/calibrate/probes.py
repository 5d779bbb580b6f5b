"""Random probes of a function's outputs, where there is no loss."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

Batch = Any


@dataclasses.dataclass(frozen=True)
class Probes:
    """Random cotangents of the outputs: gradients where the loss has none at the dense model.

    With r of mean zero and unit covariance, E[(J'r)(J'r)'] = J'J, the Gauss-Newton matrix of
    |f(W) - f(W0)|^2 / 2 (Hutchinson's estimator), for every example apart.

    Attributes:
        count: probes for each batch (for Fisher information, for each example).
        seed: of the random numbers.
        law: their distribution.
    """

    count: int = 1
    seed: int = 0
    law: Literal["normal", "rademacher"] = "normal"
    name: ClassVar[str] = "probes"

    def draw(self, key: jax.Array, outputs: list[jax.Array]) -> list[jax.Array]:
        """One cotangent for each output."""
        keys = jax.random.split(key, len(outputs))
        law = {"normal": jax.random.normal, "rademacher": jax.random.rademacher}[self.law]
        # Drawn flat: see `lrjax.linalg.draw`.
        drawn = (law(k, (y.size,), jnp.float32) for k, y in zip(keys, outputs, strict=True))
        return [x.reshape(y.shape).astype(y.dtype) for x, y in zip(drawn, outputs, strict=True)]
