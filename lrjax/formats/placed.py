"""Factored matrices in the dims of the dense weight that they were matricized from."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lrjax.errors import ShapeError, message
from lrjax.formats.layout import Layout, low_rank
from lrjax.formats.low_rank import LowRank
from lrjax.formats.network import Unsupported
from lrjax.formats.parts import Sum


def placed(found: Any, layout: Layout, shape: Sequence[int]) -> Any:
    """The weight of a dense shape, from what stands for its `matricize`, [*S, m, n].

    Raises:
      ShapeError: the format stands for a matrix alone, or its cuts miss those of the dims.
    """
    if isinstance(found, LowRank):
        return low_rank(found.left, found.right, layout, shape)
    if isinstance(found, Sum):
        return Sum(tuple(placed(part, layout, shape) for part in found.parts))
    stack, rows, cols = layout.resolve(len(shape))
    order = tuple((*rows, *cols).index(d) for d in range(len(stack), len(shape)))
    if {"rows", "cols", "order"} <= {f.name for f in dataclasses.fields(found)}:
        sizes = {"rows": tuple(shape[d] for d in rows), "cols": tuple(shape[d] for d in cols)}
        found = dataclasses.replace(found, **sizes, order=order)
    elif order != (0, 1):
        raise _misfit(found, layout, shape)
    try:
        found.lazy()
    except Unsupported as e:
        raise _misfit(found, layout, shape) from e
    return found


def _misfit(found: Any, layout: Layout, shape: Sequence[int]) -> ShapeError:
    return ShapeError(
        message(
            got=f"a {type(found).__name__}, which stands for a matrix alone",
            expected=f"a format for {tuple(shape)} with {layout}",
            todo="Choose another format, or other sizes, for this weight.",
        )
    )
