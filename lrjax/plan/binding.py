"""Weights as matrices with their metric: what planning, compression and the report share."""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.errors import StatsError, message
from lrjax.formats.layout import Layout, matricize
from lrjax.metrics import Kind, Metric, Need, WeightStats


@dataclasses.dataclass(frozen=True)
class Bound:
    """One weight as matrices [*S, m, n], and its metric, spread to the stack axes S."""

    path: str
    matrix: Any
    metric: Metric

    @property
    def key(self) -> Hashable:
        """Equal for weights that one batched call can take."""
        leaves, structure = jax.tree.flatten((self.matrix, self.metric))
        return structure, tuple((x.shape, str(x.dtype)) for x in leaves)

    @property
    def bytes(self) -> int:
        """Bytes of the operands in float32."""
        return 4 * sum(math.prod(x.shape) for x in jax.tree.leaves((self.matrix, self.metric)))


def bind(path: str, w: Any, layout: Layout, kind: Kind, stats: WeightStats | None) -> Bound:
    """The weight's matrices and its metric.

    Raises:
        StatsError: the statistics are missing or do not fit the weight.
    """
    matrix = matricize(jnp.asarray(w), layout)
    *stack, m, n = matrix.shape
    metric = kind.bind(stats, (m, n), path=path)
    try:
        return Bound(path, matrix, metric.broadcast(tuple(stack)))
    except ValueError as e:
        raise StatsError(
            message(
                path=path,
                got=f"statistics of stack shapes {_stacks(metric)}",
                expected=f"stack shape {tuple(stack)}",
                todo="Calibrate with the model that is compressed.",
            )
        ) from e


def tokens_of(seen: WeightStats | None, kind: Kind) -> np.ndarray:
    """Tokens that each matrix of the stack has seen, [*S]; one where losses are per example."""
    per_example = {Need.ROW_FISHER, Need.ELEMENT_FISHER} & set(kind.needs)
    counted = seen is not None and seen.rows is not None and not per_example
    return np.asarray(seen.rows.count if counted else 1.0, np.float64)  # pyright: ignore


def weighed(bound: Bound, share: Any) -> Bound:
    """The weight with its loss multiplied by a share for each of its matrices, [*S] or []."""
    if np.all(share == 1):
        return bound
    root = jnp.sqrt(jnp.asarray(share, jnp.float32))[..., None, None]
    return dataclasses.replace(bound, matrix=bound.matrix.astype(jnp.float32) * root)


def stacked(bounds: Sequence[Bound]) -> tuple[Any, Metric]:
    """Matrices [G, *S, m, n] and metrics of weights with one key, along a new first axis."""
    pairs = [(b.matrix, b.metric) for b in bounds]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *pairs)


def _stacks(metric: Metric) -> list[tuple[int, ...]]:
    return [x.shape for x in jax.tree.leaves(metric)]
