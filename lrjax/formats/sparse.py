"""W = k entries of every group of a column (N:M sparsity), a residual beside low rank."""

import dataclasses
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.choice import Choice
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of
from lrjax.formats.network import Network

WIDEST = 256
"""Largest group: its indices are whole numbers that bfloat16 holds exactly."""


@register(meta=("group", "rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class Sparse(Factored):
    """A matrix with k entries in every group of `group` rows, column by column.

    W[(g i), j] = sum_k values[j, g, k] (index[j, g, k] = i)

    - `values` and `index` are [*B, n, g, k]: W is [*B, g group, n]; leading axes B are stack axes.
      The index counts within the group, at most 256 rows, so that it is exact in the dtype of the
      values, whatever casts them both. It costs as much as the values do, and is counted.
    - `rows` and `cols` regroup the rows and columns into dense dimensions; None, both, does not.
    - `order` permutes rows + cols into the trailing dimensions of W, as in `LowRank`.

    A product gathers the inputs and sums, and the transposed one adds up where the entries are: the
    matrix never forms. Gradients reach the values alone. Do not let weight decay touch the index:
    `validate` tells if something moved it.
    """

    values: Float[Array, "*B n g k"] | Any
    index: Float[Array, "*B n g k"] | Any
    group: int
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """Entries a group."""
        return self.values.shape[-1]

    @property
    def nonzeros(self) -> int:
        """Entries in all."""
        return int(np.prod(self.values.shape))

    def networks(self) -> tuple[Network, ...]:
        """One network; the index is a choice of rows within the group."""
        choice = Choice(self.index, (self.group,))
        net = Network.parse("... n g k, ... n g k i -> ... (g i) n", self.values, choice)
        return (arrange(net, len(self.values.shape) - 3, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows are the groups' rows, columns n."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.values.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check the shapes, and that the index still holds whole numbers below the group's size."""
        n, g, _ = self.values.shape[-3:]
        check_sizes("Sparse", self.rows, self.cols, self.order, n * g * self.group)
        if not 1 <= self.group <= WIDEST:
            todo = "Cut the rows into smaller groups."
            got = f"group={self.group}"
            raise ShapeError(message(path="Sparse", got=got, expected=f"1 to {WIDEST}", todo=todo))
        if (index := _concrete(self.index)) is not None:
            if not np.all((index == np.round(index)) & (index >= 0) & (index < self.group)):
                todo = "Keep optimisers and weight decay away from it."
                expected = f"whole numbers from 0 to {self.group - 1}"
                got = "an index that was moved"
                raise ShapeError(message(path="Sparse", got=got, expected=expected, todo=todo))
        return super().validate()


def _concrete(x: Any) -> np.ndarray | None:
    """The values of an array; None while tracing, or of a shape alone."""
    try:
        return None if isinstance(x, jax.ShapeDtypeStruct) else np.asarray(x, np.float64)
    except jax.errors.TracerArrayConversionError:
        return None
