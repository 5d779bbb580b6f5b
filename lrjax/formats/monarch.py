"""W = two block-diagonal matrices with a permutation between them and one behind them."""

import dataclasses
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class Monarch(Factored):
    """A Monarch matrix (Dao et al., arXiv:2204.00595), with inner blocks of any width.

    W[(i a), (l k)] = sum_r left[i, a, k, r] right[k, i, r, l]

    - `left` is [*B, p, a, q, r]: p blocks a x (q r) on the diagonal of the first factor.
    - `right` is [*B, q, p, r, l]: q blocks (p r) x l on the diagonal of the second.
    - W is [*B, p a, l q]: inputs come in p runs; output l q + k belongs to block k of q, so that
      every output sees every input. r = 1 is the paper's form.
    - `rows`, `cols` and `order` as in `Kronecker`.
    """

    left: Float[Array, "*B p a q r"] | Any
    right: Float[Array, "*B q p r l"] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Number of blocks of the first and of the second factor."""
        return self.left.shape[-4], self.right.shape[-4]

    @property
    def rank(self) -> int:
        """Width r of the inner blocks."""
        return self.left.shape[-1]

    def networks(self) -> tuple[Network, ...]:
        """One network of two operands that share both block labels."""
        net = Network.parse("... p a q r, ... q p r l -> ... (p a) (l q)", self.left, self.right)
        return (arrange(net, len(self.left.shape) - 4, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows are p a, columns l q."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.left.shape) - 4, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that the factors fit together and to rows, cols and order."""
        *_, p, a, q, _ = self.left.shape
        check_sizes("Monarch", self.rows, self.cols, self.order, p * a * q * self.right.shape[-1])
        with regrouping(self, "block"):
            return super().validate()
