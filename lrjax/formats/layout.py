"""Which dimensions of a dense weight are its input and which its output."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lrjax.errors import ShapeError, message


@dataclasses.dataclass(frozen=True)
class Layout:
    """Rows and columns of a weight of any number of dimensions.

    - `rows`: dimensions that are contracted, looked up, or convolved (spatial and input).
    - `cols`: output dimensions.
    - Leading dimensions that are in neither are stack dimensions (layers, experts); any other
      unnamed dimension counts as a row.
    """

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    def resolve(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Stack, row and column dimensions of a weight with `ndim` dimensions.

        Raises:
          ShapeError: a dimension is named twice or does not exist.
        """
        named = [*self.rows, *self.cols]
        if len(set(named)) != len(named) or any(not 0 <= d < ndim for d in named):
            todo = "Name each dimension once, counted from 0."
            expected = f"distinct dimensions below {ndim}"
            raise ShapeError(message(got=self, expected=expected, todo=todo))
        first = min(named, default=ndim)
        stray = tuple(d for d in range(first, ndim) if d not in named)
        return tuple(range(first)), (*stray, *self.rows), self.cols

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape [*S, m, n] of `matricize`."""
        stack, rows, cols = self.resolve(len(shape))
        size = lambda dims: math.prod(shape[d] for d in dims)
        return (*(shape[d] for d in stack), size(rows), size(cols))


def default_layout(shape: Sequence[int]) -> Layout:
    """The most balanced cut of the dimensions in two; on a tie, the cut nearest to the end.

    How a weight is used is not in its shape: prefer the layout that `lrjax.usage` reports.
    """
    n = len(shape)
    if n < 2:
        return Layout(tuple(range(n)), ())
    balance = lambda k: (min(math.prod(shape[:k]), math.prod(shape[k:])), k)
    cut = max(range(1, n), key=balance)
    return Layout(tuple(range(cut)), tuple(range(cut, n)))


def matricize(w: Any, layout: Layout) -> Array:
    """The weight as matrices, [*S, m, n], with rows and columns merged row-major."""
    stack, rows, cols = layout.resolve(w.ndim)
    return w.transpose((*stack, *rows, *cols)).reshape(layout.matrix_shape(w.shape))


def unmatricize(matrix: Any, layout: Layout, shape: Sequence[int]) -> Array:
    """The weight of the given dense shape that `matricize` turns into `matrix`."""
    stack, rows, cols = layout.resolve(len(shape))
    perm = (*stack, *rows, *cols)
    inverse = tuple(perm.index(d) for d in range(len(shape)))
    return jnp.reshape(matrix, [shape[d] for d in perm]).transpose(inverse)


def low_rank(left: Any, right: Any, layout: Layout, shape: Sequence[int]) -> Any:
    """The `LowRank` of factors of `matricize(w, layout)` for a weight of the given dense shape."""
    from lrjax.formats.low_rank import LowRank  # a format imports its layout, not the reverse

    stack, rows, cols = layout.resolve(len(shape))
    trailing = (*rows, *cols)
    order = tuple(trailing.index(d) for d in range(len(stack), len(shape)))
    return LowRank(
        left,
        right,
        rows=None if len(rows) == 1 else tuple(shape[d] for d in rows),
        cols=None if len(cols) == 1 else tuple(shape[d] for d in cols),
        order=None if order == tuple(range(len(order))) else order,
    )
