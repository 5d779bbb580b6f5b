"""W = dense diagonal blocks, and nested bases that all others share, level by level."""

import dataclasses
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, dense_dims, layout_of, regrouping
from lrjax.formats.network import Network
from lrjax.formats.selection import Selection


@register(meta=("siblings", "rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class HSS(Factored):
    """A hierarchically semi-separable matrix (Chandrasekaran, Gu, Pals, 2006).

    W = blocks + diag(left) core diag(right)

    - `blocks` is [*B, b, m, n], the b = 2^L dense blocks on the diagonal.
    - `left` [*B, b, m, r] and `right` [*B, b, q, n] are the bases of every block row and column
      outside of them.
    - `core` [*B, b r, b q] says how they meet. It is such a matrix again, one level coarser: where
      `siblings`, block row i of `blocks` meets block column i ^ 1, and what is left of the core
      lies between bases of pairs, half as many of twice the size.
    - All three are None where there is no coarser level.
    - W is [*B, b m, b n]; `rows`, `cols` and `order` as in `Kronecker`.

    HODLR with bases that its levels share: x goes up through `left`, level by level, and down
    through `right`. A level is one batched product, and a row costs two operations a parameter.
    """

    blocks: Float[Array, "*B b m n"] | Any
    left: Float[Array, "*B c u r"] | Any = None
    core: Any = None
    right: Float[Array, "*B c q v"] | Any = None
    siblings: bool = False
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The sizes of the bases on each level, coarse first; zero where there is none."""
        levels = self.blocks.shape[-3].bit_length() - 1 - self.siblings
        own = () if self.core is None else (*self.core.ranks, self.left.shape[-1])
        return (0,) * (levels - len(own)) + own

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight."""
        *stack, b, m, n = self.blocks.shape
        return dense_dims((*stack, b * m, b * n), self.rows, self.cols, self.order, len(stack))

    def networks(self) -> tuple[Network, ...]:
        """The blocks, and the core between the bases: an operand that is a weight."""
        stack, b = len(self.blocks.shape) - 3, self.blocks.shape[-3]
        meets = Selection(tuple(i ^ self.siblings for i in range(b)), (b,), (b,))
        nets = [Network.parse("... b m n, c b -> ... (b m) (c n)", self.blocks, meets)]
        if self.core is not None:
            (c, _, r), (q, _) = self.left.shape[-3:], self.right.shape[-2:]
            same = Selection(tuple(range(c)), (c,), (c,))
            core = dataclasses.replace(self.core, rows=(c, r), cols=(c, q))
            pattern = "... b u r, c b, ... c r d q, e d, ... e q v -> ... (b u) (e v)"
            nets.append(Network.parse(pattern, self.left, same, core, same, self.right))
        return tuple(arrange(net, stack, self.rows, self.cols, self.order) for net in nets)

    @property
    def layout(self) -> Layout:
        """Rows are b m, columns b n."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.blocks.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that bases and core fit level by level, and to rows, cols and order."""
        *stack, b, m, n = self.blocks.shape
        check_sizes("HSS", self.rows, self.cols, self.order, b * m * b * n)
        if self.core is not None:
            (*_, c, u, r), (*_, d, q, v) = self.left.shape, self.right.shape
            own = ((c * u, d * v), (*stack, c * r, d * q))
            if c != d or own != ((b * m, b * n), self.core.shape) or self.core.rows is not None:
                got = f"bases {self.left.shape} and {self.right.shape}, core {self.core.shape}"
                expected = f"bases of {b * m} rows and {b * n} columns, and the core between them"
                todo = "Give a basis for each block, and the core as a matrix."
                raise ShapeError(message(path="HSS", got=got, expected=expected, todo=todo))
            self.core.validate()
        with regrouping(self, "block"):
            return super().validate()
