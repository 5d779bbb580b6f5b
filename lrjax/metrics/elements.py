"""The metric of element-wise weights, which no pair of sides can express."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot, over_stack, working
from lrjax.metrics.metric import Diagonal, Metric, check_fit
from lrjax.metrics.separable import separable_sides

STEPS = 32
"""Ranks at which a loss is measured; between two it is interpolated."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elements(Metric):
    """loss(D) = sum_ij F_ij D_ij^2: the importance of every entry, e.g. its Fisher information.

    Solvers that know nothing of entries see the nearest separable weights r c' as its sides.

    Attributes:
        weights: F >= 0, [*S, m, n]; 0 and 1 make matrix completion.
    """

    weights: Any = None

    @classmethod
    def of(cls, weights: Float[Array, "*S m n"]) -> "Elements":
        """The metric with its sides."""
        rows, cols = separable_sides(weights)
        return cls(Diagonal(rows), Diagonal(cols), weights=weights)

    def fitting(self, shape: Sequence[int]) -> Self:
        """As `Metric.fitting`; ShapeError unless there is one weight for every entry."""
        *stack, m, n = shape
        check_fit("weights", self.weights, tuple(stack), (m, n))
        return super().fitting(shape)

    @property
    def is_separable(self) -> bool:
        """It is not."""
        return False

    def arrays(self) -> tuple[Array | None, Array | None]:
        """The nearest separable weights r c', as diagonals: what whitening can use."""
        if self.rows is None or self.cols is None:
            return separable_sides(self.weights)
        return super().arrays()

    def broadcast(self, stack: tuple[int, ...]) -> "Elements":
        """The metric with its weights, and its sides, spread to the stack axes."""
        if self.rows is None or self.cols is None:
            return Elements.of(self.weights).broadcast(stack)
        sides = super().broadcast(stack)
        weights = jnp.broadcast_to(self.weights, (*stack, *self.weights.shape[-2:]))
        return Elements(sides.rows, sides.cols, weights=weights)

    def spectrum(self, w: Float[Array, "*S m n"]) -> Float[Array, "*S k"]:
        """S whose tails are true losses of the optimum under r c', where the search starts.

        Upper bounds of what `WeightedLowRank` reaches: measured at a few ranks, and interpolated.
        """
        arrays = [working(x) for x in (w, self.weights, *self.arrays())]  # pyright: ignore
        return over_stack(_spectrum, arrays, core=2)

    def residual(self, w, left, right):
        """loss(W - left right)^.5."""
        w, left, right = (working(x) for x in (w, left, right))
        return jnp.sqrt(self.loss(w - dot(left, right)))

    def loss(self, delta: Float[Array, "*S m n"]) -> Float[Array, "*S"]:
        """sum_ij F_ij D_ij^2 per stack entry, in float32; entries without weight may be NaN."""
        delta = jnp.where(self.weights > 0, delta.astype(jnp.float32), 0)
        return jnp.sum(self.weights * delta**2, axis=(-2, -1))


def _spectrum(w: Array, f: Array, r: Array, c: Array) -> Array:
    """From the true loss sum F (W - W_k)^2 at ranks k = 0, b, 2 b, ..."""
    if w.shape[0] < w.shape[1]:
        w, f, r, c = w.T, f.T, c, r
    size = w.shape[1]
    block = -(-size // STEPS)
    blocks = -(-size // block)
    w = jnp.where(f > 0, w, 0)
    row, col = jnp.sqrt(r)[:, None], jnp.sqrt(c)
    white = row * w * col
    gram = dot(white.T, white)
    finite = jnp.isfinite(jnp.sum(gram))
    _, vectors = jnp.linalg.eigh(jnp.where(finite, gram, 0))
    vectors = jnp.pad(vectors[:, ::-1], ((0, 0), (0, blocks * block - size)))
    vectors = vectors.reshape(size, blocks, block).transpose(1, 0, 2)
    # F D^2 with D = X / (r c)^.5, X the whitened remainder
    inverse = lambda x: jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)
    share = f * inverse(r)[:, None] * inverse(c)

    def drop(rest: Array, v: Array) -> tuple[Array, Array]:
        rest = rest - dot(dot(white, v), v.T)
        return rest, jnp.sum(share * rest**2)

    first = jnp.sum(share * white**2)
    _, losses = jax.lax.scan(drop, white, vectors)
    losses = jax.lax.cummin(jnp.append(first, losses))
    energy = jnp.repeat((losses[:-1] - losses[1:]) / block, block)[:size]
    # the last block may be short: its energy is spread over the ranks that it has
    last = size - (blocks - 1) * block
    energy = energy * jnp.where(jnp.arange(size) < size - last, 1, block / last)
    return jnp.where(finite, jnp.sqrt(energy), 0)
