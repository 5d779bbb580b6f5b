"""Fisher information of every entry or row: squared gradients of every example, streamed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrjax import trees
from lrjax.calibrate.probes import Batch, Probes
from lrjax.calibrate.reduce import mask_outputs
from lrjax.errors import StatsError, message
from lrjax.formats.layout import Layout, matricize
from lrjax.metrics import SquaredGradients
from lrjax.trees import Tree

Loss = Callable[[Any, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class Given:
    """The labels of the batch itself: the empirical Fisher information, of the loss."""

    name: ClassVar[str] = "given"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Labels drawn from the model's own distribution: the true Fisher information, of the loss.

    Attributes:
        draw: draw(key, outputs, batch) -> the batch with drawn labels, for instance
            `lambda key, y, batch: batch | {"label": jax.random.categorical(key, y)}`.
        count: draws for each example.
        seed: of the random numbers.
    """

    draw: Callable[[Array, Any, Batch], Batch]
    count: int = 1
    seed: int = 0
    name: ClassVar[str] = "drawn"


@dataclasses.dataclass(frozen=True)
class Fisher:
    """What to gather of E[(X'G)_ij^2], the mean over examples of squared gradients.

    The gradient is that of one example's own loss (the loss of a batch of that example alone), all
    uses of the weight and all its tokens summed; the square comes after. So the loss must make
    sense of one example: one that compares the examples of a batch does not.

    Attributes:
        elements: every entry's, m n numbers a weight; else the rows' sums, m numbers.
        labels: where labels come from: `Given()`, `Drawn(...)`, or `Probes(...)` of the outputs
            (the diagonal of the Gauss-Newton matrix, which needs no loss).
        chunk: examples whose gradients are held at once. Memory of a step is at most chunk + 3
            times the selected weights in float32, and what the activations of chunk examples take,
            whatever the batch.
    """

    elements: bool = True
    labels: Given | Drawn | Probes = dataclasses.field(default_factory=Given)
    chunk: int = 8

    @property
    def seed(self) -> int:
        """Of the labels' random numbers."""
        return getattr(self.labels, "seed", 0)


@dataclasses.dataclass(frozen=True, eq=False)
class FisherObserver:
    """Squared gradients of one batch; pure and jittable.

    Attributes:
        apply: apply(params, batch) -> outputs.
        fisher: what to gather.
        loss: loss(outputs, batch), with labels that are given or drawn.
        mask: which positions are tokens; an example without any does not count.
        layouts: path -> layout, of the weights to look at.
        shared: path -> path of the leaf that is the same array: one weight, one gradient.
    """

    apply: Callable[[Tree, Batch], Any]
    fisher: Fisher
    loss: Loss | None
    mask: Callable[[Batch], Array] | None
    layouts: Mapping[str, Layout]
    shared: Mapping[str, str]

    def __call__(self, params: Tree, batch: Batch, key: Array) -> dict[str, SquaredGradients]:
        """Path -> the mean over the batch's examples, chunk by chunk; nothing else is kept."""
        leaves, _ = trees.flatten(params)
        weights = {self.shared.get(path, path): None for path in self.layouts}
        weights = {path: leaves[path] for path in weights}
        axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, batch)
        count = next(x.shape[0] for x in jax.tree.leaves(batch) if jnp.ndim(x))
        chunk = max(1, min(self.fisher.chunk, count))
        real = jnp.ones(count, bool)
        if self.mask is not None:
            mask = jnp.asarray(self.mask(batch), bool)
            real = jnp.any(mask.reshape(count, -1), axis=1)

        def squares(single: Batch, key: Array) -> dict[str, Array]:
            found = self._squares(params, weights, single, key)
            return {path: self._view(path, x) for path, x in found.items()}

        def step(total: dict[str, Array], at: Array) -> tuple[dict[str, Array], None]:
            # places past the last example read it again, and count for nothing
            here = jnp.minimum(at, count - 1)
            counts = (at < count) & real[here]
            part = jax.tree.map(lambda x: x[here][:, None] if jnp.ndim(x) else x, batch)
            each = jax.vmap(squares, in_axes=(axes, 0))(part, keys[here])
            add = lambda x: jnp.sum(_where(counts, x), axis=0)
            return jax.tree.map(lambda t, x: t + add(x), total, each), None

        keys = jax.random.split(key, count)
        shapes = {p: self._shape(p, w.shape) for p, w in weights.items()}
        zeros = {path: jnp.zeros(shape, jnp.float32) for path, shape in shapes.items()}
        places = jnp.arange(-(-count // chunk) * chunk).reshape(-1, chunk)
        total, _ = jax.lax.scan(step, zeros, places)
        examples = jnp.sum(real, dtype=jnp.float32)
        over = lambda x: x / jnp.maximum(examples, 1.0)
        named = self.fisher.elements, self.fisher.labels.name
        means = {path: SquaredGradients(examples, over(x), *named) for path, x in total.items()}
        return {path: means[self.shared.get(path, path)] for path in self.layouts}

    def _squares(
        self, params: Tree, weights: dict[str, Array], batch: Batch, key: Array
    ) -> dict[str, Array]:
        """Squared gradients of a batch of one example, the mean over draws of its labels."""

        def forward(weights: dict[str, Array]) -> Any:
            aliases = {p: weights[first] for p, first in self.shared.items() if first in weights}
            return self.apply(trees.replace(params, weights | aliases), batch)

        outputs, pull = jax.vjp(forward, weights)

        def one(key: Array) -> dict[str, Array]:
            (gradients,) = pull(self._cotangent(key, outputs, batch))
            return {path: g.astype(jnp.float32) ** 2 for path, g in gradients.items()}

        draws = getattr(self.fisher.labels, "count", 1)
        if draws == 1:
            return one(key)
        add = lambda k, total: jax.tree.map(jnp.add, total, one(jax.random.fold_in(key, k)))
        zeros = {path: jnp.zeros(w.shape, jnp.float32) for path, w in weights.items()}
        total = jax.lax.fori_loop(0, draws, add, zeros)
        return jax.tree.map(lambda x: x / draws, total)

    def _cotangent(self, key: Array, outputs: Any, batch: Batch) -> Any:
        """What is pulled back: the loss's gradient, or a probe."""
        labels = self.fisher.labels
        if isinstance(labels, Probes):
            leaves, structure = jax.tree.flatten(outputs)
            mask = None if self.mask is None else jnp.asarray(self.mask(batch), bool)
            drawn = iter(labels.draw(key, [y for y in leaves if _is_float(y)]))
            return structure.unflatten(
                mask_outputs(next(drawn), mask)
                if _is_float(y)
                else np.zeros(jnp.shape(y), jax.dtypes.float0)
                for y in leaves
            )
        assert self.loss is not None
        if isinstance(labels, Drawn):
            batch = labels.draw(key, jax.lax.stop_gradient(outputs), batch)
        value, back = jax.vjp(lambda y: self.loss(y, batch), outputs)  # pyright: ignore
        return back(jnp.ones_like(value))[0]

    def _view(self, path: str, squares: Array) -> Array:
        """As matrices, [*S, m, n], or sums of their rows."""
        matrix = matricize(squares, self._layout(path))
        return matrix if self.fisher.elements else jnp.sum(matrix, axis=-1)

    def _shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        matrix = self._layout(path).matrix_shape(shape)
        return matrix if self.fisher.elements else matrix[:-1]

    def _layout(self, path: str) -> Layout:
        """The layout of a weight, which its aliases share."""
        return next(l for p, l in self.layouts.items() if self.shared.get(p, p) == path)


def check_request(fisher: Fisher, loss: Loss | None) -> None:
    """Refuses labels without a loss.

    Raises:
        StatsError: labels are given or drawn, but there is no loss.
    """
    if loss is None and not isinstance(fisher.labels, Probes):
        raise StatsError(
            message(
                got=f"Fisher information of {fisher.labels.name} labels, without a loss",
                expected="loss=..., or labels=Probes()",
                todo="Pass the loss, or probe the outputs with Fisher(labels=Probes()).",
            )
        )


def _where(counts: Array, x: Array) -> Array:
    return jnp.where(jnp.reshape(counts, (-1,) + (1,) * (x.ndim - 1)), x, 0.0)


def _is_float(y: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(y), jnp.floating)
