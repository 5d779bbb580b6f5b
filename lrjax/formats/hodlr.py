"""W = dense diagonal blocks and, level by level, off-diagonal blocks of low rank."""

import dataclasses
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network
from lrjax.formats.selection import Selection


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class HODLR(Factored):
    """A hierarchically off-diagonal low-rank matrix.

    W halves into [[W_0, U V'], [U V', W_1]]; W_0 and W_1 halve again, down to dense blocks.

    - `diagonal` is [*B, b, m, n], the b = 2^L dense blocks.
    - `lefts[l]` is [*B, 2^(l+1), m_l, r_l] and `rights[l]` [*B, 2^(l+1), r_l, n_l], coarse first:
      off the diagonal of level l block row i meets block column i ^ 1, its sibling, and their
      block is lefts[l][i] @ rights[l][i ^ 1].
    - W is [*B, b m, b n]; `rows`, `cols` and `order` as in `Kronecker`.

    A level is one batched product, whatever its number of blocks.
    """

    diagonal: Float[Array, "*B b m n"] | Any
    lefts: tuple[Float[Array, "*B _ _ _"] | Any, ...]
    rights: tuple[Float[Array, "*B _ _ _"] | Any, ...]
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of the blocks of each level, coarse first."""
        return tuple(left.shape[-1] for left in self.lefts)

    def networks(self) -> tuple[Network, ...]:
        """A network for the diagonal and one for each level."""
        b = self.diagonal.shape[-3]
        same = Selection(tuple(range(b)), (b,), (b,))
        pattern = "... b m n, c b -> ... (b m) (c n)"
        nets = [Network.parse(pattern, self.diagonal, same)]
        for left, right in zip(self.lefts, self.rights, strict=True):
            count = left.shape[-3]
            siblings = Selection(tuple(i ^ 1 for i in range(count)), (count,), (count,))
            pattern = "... b m r, c b, ... c r n -> ... (b m) (c n)"
            nets.append(Network.parse(pattern, left, siblings, right))
        stack = len(self.diagonal.shape) - 3
        return tuple(arrange(net, stack, self.rows, self.cols, self.order) for net in nets)

    @property
    def layout(self) -> Layout:
        """Rows are b m, columns b n."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.diagonal.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that the blocks halve level by level, and fit to rows, cols and order."""
        *_, b, m, n = self.diagonal.shape
        check_sizes("HODLR", self.rows, self.cols, self.order, b * m * b * n)
        levels = len(self.lefts)
        counts = [x.shape[-3] for x in (*self.lefts, *self.rights)]
        if b != 2**levels or counts != [2 ** (k + 1) for k in range(levels)] * 2:
            got = f"{b} diagonal blocks and levels of {counts} blocks"
            expected = "2, 4, ... off-diagonal blocks, as many on the last level as on the diagonal"
            todo = "Give one left and one right factor a level, coarse first."
            raise ShapeError(message(path="HODLR", got=got, expected=expected, todo=todo))
        with regrouping(self, "block"):
            return super().validate()
