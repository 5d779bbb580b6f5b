"""A metric: by what a change of a weight is weighed.

Fields of pytrees are typed Any: JAX also builds them of sentinels, specs and shardings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.linalg import weighted_residual, weighted_spectrum
from lrjax.linalg.stack import working


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal:
    """One side of a metric, values [*S, d]: the positive semi-definite matrix diag(values)."""

    values: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gram:
    """One side of a metric, matrix [*S, d, d]: symmetric, positive semi-definite or singular."""

    matrix: Any


Side = Diagonal | Gram | None
"""One side of a metric; None is the identity."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
    """loss(D) = tr(D' rows D cols) of a change D [*S, m, n]; an absent side is the identity.

    Attributes:
        rows: Side of the inputs, [*S, m, m] or [*S, m].
        cols: Side of the outputs, [*S, n, n] or [*S, n].
        mean: mean input [*S, m] of a centred metric: its bias is to be corrected by mean (W - W').
    """

    rows: Any = None
    cols: Any = None
    mean: Any = None

    def arrays(self) -> tuple[Array | None, Array | None]:
        """Rows and cols as arrays: full [*S, d, d], diagonal [*S, d], or None for the identity."""
        return _array(self.rows), _array(self.cols)

    def broadcast(self, stack: tuple[int, ...]) -> "Metric":
        """The metric with every side spread to the stack axes `stack`, shared or not."""

        def spread(x: Array | None, trailing: int) -> Array | None:
            return (
                None if x is None else jnp.broadcast_to(x, (*stack, *x.shape[x.ndim - trailing :]))
            )

        def side(s: Side) -> Side:
            match s:
                case None:
                    return None
                case Diagonal(values):
                    return Diagonal(spread(values, 1))  # pyright: ignore
                case Gram(matrix):
                    return Gram(spread(matrix, 2))  # pyright: ignore

        return Metric(side(self.rows), side(self.cols), spread(self.mean, 1))

    def fitting(self, shape: Sequence[int]) -> Self:
        """The metric in floating arrays, for matrices of shape [*S, m, n].

        Raises:
          ShapeError: a side, or the mean, is not of the matrices' sizes, or of other stack axes.
        """
        *stack, m, n = shape
        own = jax.tree.map(lambda x: working(jnp.asarray(x)), self)
        for name, side, size in (("rows", own.rows, m), ("cols", own.cols, n)):
            if side is not None:
                ends = (size, size) if isinstance(side, Gram) else (size,)
                check_fit(name, _array(side), tuple(stack), ends)
        if own.mean is not None:
            check_fit("mean", own.mean, tuple(stack), (m,))
        return own

    @property
    def is_separable(self) -> bool:
        """Whether whitening by `arrays` is exact, so that tails of the spectrum are optima."""
        return True

    def spectrum(self, w: Float[Array, "*S m n"]) -> Float[Array, "*S k"]:
        """s, k = min(m, n), falling: the loss at rank r is the sum of s_i^2 over i > r."""
        return weighted_spectrum(w, *self.arrays())

    def residual(
        self,
        w: Float[Array, "*S m n"],
        left: Float[Array, "*S m r"],
        right: Float[Array, "*S r n"],
    ) -> Float[Array, "*S"]:
        """loss(W - left right)^.5, without overflow on the way."""
        rows, cols = self.arrays()
        return weighted_residual(w, left, right, rows=rows, cols=cols)

    def norm(self, delta: Float[Array, "*S m n"]) -> Float[Array, "*S"]:
        """loss(delta)^.5, in a unit in which its squares cannot leave the range."""
        delta = delta.astype(jnp.float32)
        peak = jnp.max(jnp.abs(delta), axis=(-2, -1))
        unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
        lost = self.loss(delta / unit[..., None, None])
        return jnp.sqrt(jnp.maximum(lost, 0)) * unit

    def loss(self, delta: Float[Array, "*S m n"]) -> Float[Array, "*S"]:
        """tr(D' rows D cols) per stack entry [*S], in float32."""
        delta = delta.astype(jnp.float32)
        weighted = _apply_rows(self.rows, delta)
        if self.cols is not None:
            transposed = _apply_rows(self.cols, jnp.swapaxes(weighted, -1, -2))
            weighted = jnp.swapaxes(transposed, -1, -2)
        return jnp.sum(weighted * delta, axis=(-2, -1))


def check_fit(name: str, array: Any, stack: tuple[int, ...], ends: tuple[int, ...]) -> None:
    """ShapeError unless an array is [*S, *ends], S spreading to the stack axes."""
    shape = jnp.shape(array)
    lead = shape[: max(len(shape) - len(ends), 0)]
    own = (1,) * (len(stack) - len(lead)) + lead
    spreads = len(own) == len(stack) and all(a in (1, b) for a, b in zip(own, stack, strict=True))
    if shape[len(lead) :] != ends or not spreads:
        expected = f"{ends}, or behind leading axes {stack}" if stack else f"{ends}"
        todo = "Calibrate with the model that is compressed, or correct the metric."
        raise ShapeError(message(got=f"metric {name} of {shape}", expected=expected, todo=todo))


def _array(side: Side) -> Array | None:
    match side:
        case None:
            return None
        case Diagonal(values):
            return values
        case Gram(matrix):
            return matrix


def _apply_rows(side: Side, delta: Array) -> Array:
    match side:
        case None:
            return delta
        case Diagonal(values):
            return values[..., :, None] * delta
        case Gram(matrix):
            return jnp.matmul(matrix, delta, precision="highest")
