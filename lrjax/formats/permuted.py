"""A weight whose rows and columns were reordered before it was factored."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.network import Network
from lrjax.formats.selection import Selection

Order = tuple[int, ...]


@register(meta=("rows", "cols"))
@dataclasses.dataclass(frozen=True)
class Permuted(Factored):
    """W[rows[i], cols[j]] = weight[i, j], for a factored matrix with stack axes before it.

    - `weight` stands for matrices [*B, m, n].
    - `rows`, `cols`: permutations of 0..m-1 and 0..n-1, or None to keep the order; static, so they
      have no bytes. Applied, they are a gather of the activation and of the output.
    """

    weight: Any
    rows: Order | None = None
    cols: Order | None = None

    def networks(self) -> tuple[Network, ...]:
        """The weight's networks with a selection on each reordered dimension."""
        return tuple(_placed(_placed(n, -2, self.rows), -1, self.cols)
                     for n in self.weight.networks())  # fmt: skip

    @property
    def layout(self) -> Layout:
        """Rows and columns of the matrix."""
        n = len(self.weight.shape)
        return Layout((n - 2,), (n - 1,))

    def validate(self) -> Self:
        """Check the weight and that rows and cols permute its dimensions."""
        self.weight.validate()
        check_orders(self.rows, self.cols, self.weight.shape)
        return super().validate()


def check_orders(rows: Order | None, cols: Order | None, shape: Sequence[int]) -> None:
    """Check that rows and cols permute those of matrices [*B, m, n].

    Raises:
      ShapeError: one does not.
    """
    for name, order, size in zip(("rows", "cols"), (rows, cols), shape[-2:], strict=True):
        if order is not None and sorted(order) != list(range(size)):
            got, todo = f"{name} of {len(order)} indices", "Name every index once."
            expected = f"a permutation of 0..{size - 1}"
            raise ShapeError(message(path="Permuted", got=got, expected=expected, todo=todo))


def _placed(net: Network, axis: int, order: Order | None) -> Network:
    """The network with index i of a dimension moved to order[i]."""
    if order is None:
        return net
    axis %= len(net.dims)
    group, sizes, new = net.dims[axis], net.sizes, net.fresh()
    index = [0] * len(order)
    for i, place in enumerate(order):
        index[place] = i
    pattern = Selection(tuple(index), (len(order),), tuple(sizes[k] for k in group))
    dims = list(net.dims)
    dims[axis] = (new,)
    return net.with_operand(pattern, (new, *group)).with_dims(dims)
