"""W = sum of Kronecker products, for dense layers, embeddings and DenseGeneral kernels."""

import dataclasses
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class Kronecker(Factored):
    """A sum of Kronecker products, W[(i k), (j l)] = sum_s a[s, i, j] b[s, k, l].

    - `a` is [*B, s, i, j] and `b` is [*B, s, k, l]: W is [*B, i k, j l]; B are stack axes.
    - `rows` and `cols` regroup i k and j l into dense dimensions; None, both, does not.
    - `order` permutes rows + cols into the trailing dimensions of W, as in `LowRank`.

    Few terms may have full rank: it is not a low-rank format. A vector x becomes the matrix
    X [i, k] and x W is the sum of a_s' X b_s, so that W never forms. Of a table of i k rows,
    row (i, k) is the sum of a[s, i] (x) b[s, k].
    """

    a: Float[Array, "*B s i j"] | Any
    b: Float[Array, "*B s k l"] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """The number of terms."""
        return self.a.shape[-3]

    def networks(self) -> tuple[Network, ...]:
        """One network, with the terms as its inner label."""
        net = Network.parse("... s i j, ... s k l -> ... (i k) (j l)", self.a, self.b)
        return (arrange(net, len(self.a.shape) - 3, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows are i k, columns j l."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.a.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that the factors fit together and to rows, cols and order."""
        *_, i, j = self.a.shape
        *_, k, l = self.b.shape
        check_sizes("Kronecker", self.rows, self.cols, self.order, i * j * k * l)
        with regrouping(self, "factor"):
            return super().validate()
