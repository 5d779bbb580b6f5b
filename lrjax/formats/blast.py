"""W = blocks that share left factors along rows and right factors along columns."""

import dataclasses
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class BLAST(Factored):
    """A BLAST matrix (Lee et al., arXiv:2410.21262): W_pq = left_p diag(couplings_pq) right_q.

    - `left` is [*B, p, m, r], one factor a block row; `right` is [*B, q, r, n], one a block
      column; `couplings` is [*B, p, q, r], how much of each rank every block takes.
    - W is [*B, p m, q n]; `rows`, `cols` and `order` as in `Kronecker`.

    Low rank (all couplings one), block-diagonal and equal-rank block matrices are special cases.
    A row costs r (p m + p q + q n) multiply-adds.
    """

    left: Float[Array, "*B p m r"] | Any
    couplings: Float[Array, "*B p q r"] | Any
    right: Float[Array, "*B q r n"] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """How many blocks there are in a column and in a row."""
        return self.left.shape[-3], self.right.shape[-3]

    @property
    def rank(self) -> int:
        """The rank that all blocks share."""
        return self.left.shape[-1]

    def networks(self) -> tuple[Network, ...]:
        """One network of three operands with the rank as its inner label."""
        pattern = "... p m r, ... p q r, ... q r n -> ... (p m) (q n)"
        net = Network.parse(pattern, self.left, self.couplings, self.right)
        return (arrange(net, len(self.left.shape) - 3, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows are p m, columns q n."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.left.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that the factors fit together and to rows, cols and order."""
        (*_, p, m, _), (*_, q, _, n) = self.left.shape, self.right.shape
        check_sizes("BLAST", self.rows, self.cols, self.order, p * m * q * n)
        with regrouping(self, "block"):
            return super().validate()
