"""What error means: second moments of what a weight sees, and the metrics made of them.

A weight as a matrix W [m, n] maps its input side (rows, m) to its output side (cols, n). Its
statistics are second moments of the two sides; a metric weighs a change D of W by
loss(D) = tr(D' rows D cols). A *kind* is the static recipe that binds statistics to a metric.

Fields of pytrees are typed Any: JAX also builds them of sentinels, specs and shardings.
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
class Moments:
    """Second moment of a vector z [*S, d] over `count` tokens, normalised: second = E[z z'].

    Attributes:
        count: number of tokens, for each stack entry, [*S] or [].
        mean: E[z] [*S, d]; None where it was not kept.
        second: E[z z'] [*S, d, d], or its diagonal [*S, d] if `diagonal`.
        diagonal: only the diagonal is stored (looked-up rows: the tokens' frequencies).
    """

    count: Any
    mean: Any
    second: Any
    diagonal: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def size(self) -> int:
        """Length d of the vector."""
        return self.second.shape[-1]

    def side(self, *, center: bool = False, shrink: float = 0.0) -> Diagonal | Gram:
        """The moment as one side of a metric, [*S, d, d] or [*S, d].

        S = E[z z'] - center E[z] E[z]', then (1 - shrink) S + shrink tr(S) / d I: towards the mean
        diagonal, so that the unit of the loss stays (Ledoit and Wolf, 2004).
        """
        second = self.second.astype(jnp.float32)
        if center and self.mean is not None:
            mean = self.mean.astype(jnp.float32)
            second -= mean**2 if self.diagonal else mean[..., :, None] * mean[..., None, :]
        if self.diagonal:
            values = jnp.maximum(second, 0.0)
            if shrink:
                values = (1 - shrink) * values + shrink * jnp.mean(values, axis=-1, keepdims=True)
            return Diagonal(values)
        if shrink:
            level = jnp.trace(second, axis1=-2, axis2=-1)[..., None, None] / self.size
            second = (1 - shrink) * second + shrink * level * jnp.eye(self.size, dtype=second.dtype)
        return Gram(second)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together, by count: (n_a A + n_b B) / (n_a + n_b).

    Normalised means are merged, never sums, so float32 stays accurate over any number of tokens.
    """
    total = a.count + b.count
    share = b.count / jnp.where(total > 0, total, 1.0)

    def mix(x: Array, y: Array) -> Array:
        return x + jnp.reshape(share, share.shape + (1,) * (x.ndim - share.ndim)) * (y - x)

    mean = None if a.mean is None or b.mean is None else mix(a.mean, b.mean)
    return Moments(total, mean, mix(a.second, b.second), a.diagonal)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightStats:
    """What one weight W [*S, m, n] sees: `rows` its inputs (m), `cols` its output gradients (n).

    Attributes:
        rows: Moments of the inputs; for a looked-up table the frequencies of its rows.
        cols: Moments of the loss's gradient at the outputs, per token; None if not calibrated.
        bias: path of the bias that is added to the weight's output, if there is one.
    """

    rows: Any = None
    cols: Any = None
    bias: str | None = dataclasses.field(default=None, metadata={"static": True})


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

    def loss(self, delta: Float[Array, "*S m n"]) -> Float[Array, "*S"]:
        """tr(D' rows D cols) per stack entry [*S], in float32."""
        delta = delta.astype(jnp.float32)
        weighted = _apply_rows(self.rows, delta)
        if self.cols is not None:
            transposed = _apply_rows(self.cols, jnp.swapaxes(weighted, -1, -2))
            weighted = jnp.swapaxes(transposed, -1, -2)
        return jnp.sum(weighted * delta, axis=(-2, -1))


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


class Kind(ABC):
    """Static, hashable recipe from a weight's statistics to its metric: frozen dataclasses."""

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
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}  # pyright: ignore


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
    `shrink` moves A towards its mean diagonal.
    """

    center: bool = False
    shrink: float = 0.0

    def bind(self, stats, shape, *, path="weight"):
        """A on the rows; raises StatsError without input statistics of the right size."""
        rows = _moments(stats, "rows", shape[0], path)
        center = self.center and _bias(stats)
        return Metric(
            rows.side(center=center, shrink=self.shrink), None, rows.mean if center else None
        )


@dataclasses.dataclass(frozen=True)
class TwoSided(Kind):
    """loss(D) = tr(D' A D G), A = E[x x'], G = E[g g']: the loss's own second-order change (K-FAC).

    Inputs and output gradients are taken per token and as independent (arXiv:1503.05671); used for
    factoring by KFAC-SVD. `center` as in `Input`; each side may shrink towards its mean diagonal.
    """

    center: bool = False
    shrink_rows: float = 0.0
    shrink_cols: float = 0.0

    def bind(self, stats, shape, *, path="weight"):
        """A on the rows, G on the cols; raises StatsError where one is missing or misfits."""
        rows = _moments(stats, "rows", shape[0], path)
        cols = _moments(stats, "cols", shape[1], path)
        center = self.center and _bias(stats)
        return Metric(
            rows.side(center=center, shrink=self.shrink_rows),
            cols.side(shrink=self.shrink_cols),
            rows.mean if center else None,
        )


def default_kind(stats: WeightStats | None) -> Kind:
    """The kind that uses all a weight's statistics: TwoSided, else Input, else Frobenius.

    Centred, for it costs nothing and helps; a weight without a bias is not centred all the same.
    """
    if stats is None or stats.rows is None:
        return Frobenius()
    return Input(center=True) if stats.cols is None else TwoSided(center=True)


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
    return known[name](**fields)


def _descendants(cls: type) -> list[type]:
    return [d for sub in cls.__subclasses__() for d in (sub, *_descendants(sub))]


def _bias(stats: WeightStats | None) -> bool:
    """Centring is free only where a bias can take the mean's part."""
    return stats is not None and stats.bias is not None


def _moments(stats: WeightStats | None, side: str, size: int, path: str) -> Moments:
    moments = None if stats is None else getattr(stats, side)
    what = {"rows": "input", "cols": "output-gradient"}[side]
    if moments is None:
        raise StatsError(
            message(
                path=path,
                got=f"no {what} statistics",
                expected=f"a second moment of size {size}",
                todo="calibrate with the batches (and a loss or probes), or choose another metric",
            )
        )
    if moments.size != size:
        raise StatsError(
            message(
                path=path,
                got=f"{what} statistics of size {moments.size}",
                expected=f"size {size}, as the weight's matrix",
                todo="calibrate with the model that is compressed",
            )
        )
    return moments
