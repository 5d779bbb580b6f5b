"""W_s = left @ core_s @ right, for stacked layers, heads or experts that share their bases."""

import dataclasses
import math
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class SharedBasis(Factored):
    """A stack of matrices with one basis for their inputs, their outputs, or both.

    W[s] = left @ core[s] @ right

    - `core` is [*B, *S, r, q]; `left` is [*B, m, r] or None (then r = m, the identity), and `right`
      is [*B, q, n] or None (q = n); one of them is given.
    - The axes S, in front of the matrix, share the bases: layers, heads or experts. Leading axes B,
      which all factors have, are stack axes with bases of their own.
    - `rows` and `cols` regroup m and n into dense dimensions; None, both, does not. `order`
      permutes rows + cols into the trailing dimensions of W, as in `LowRank`.

    The product with x is x @ left once, then a small core an entry; a loop over S visits the cores
    alone. Heads that are columns of one matrix need no format of their own: a `LowRank` with
    cols=(heads, head_dim) shares its left factor among them. Both bases are a Tucker form whose
    stack is not compressed (Basis Sharing, arXiv:2410.03765, has the left one).
    """

    core: Float[Array, "*B_and_S r q"] | Any
    left: Float[Array, "*B m r"] | Any = None
    right: Float[Array, "*B q n"] | Any = None
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Sizes of the left and the right basis; 0 where there is none."""
        r, q = self.core.shape[-2:]
        return (0 if self.left is None else r), (0 if self.right is None else q)

    @property
    def sharing(self) -> int:
        """How many axes in front of the matrix share the bases."""
        return self._stack - min(len(x.shape) - 2 for x in self._bases)

    def networks(self) -> tuple[Network, ...]:
        """One network, in which the stack's labels are on the core alone."""
        stack = [f"s{k}" for k in range(self._stack)]
        lead = " ".join(stack[: self._stack - self.sharing])
        row, col = "m" if self.left is not None else "r", "n" if self.right is not None else "q"
        terms = [f"{' '.join(stack)} r q"]
        terms += [f"{lead} m r"] if self.left is not None else []
        terms += [f"{lead} q n"] if self.right is not None else []
        pattern = f"{', '.join(terms)} -> {' '.join(stack)} {row} {col}"
        net = Network.parse(pattern, self.core, *self._bases)
        return (arrange(net, self._stack, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows and columns of each entry; the stack is in neither."""
        return layout_of(self._stack, len(self.rows or (0,)), len(self.cols or (0,)), self.order)

    def validate(self) -> Self:
        """Check that there is a basis, that the factors fit, and rows, cols and order with them."""
        if not self._bases or self._stack < 1:
            got = "no basis" if not self._bases else f"a core of shape {self.core.shape}"
            todo = "Give left, right or both, and a core with an axis in front of its matrix."
            raise ShapeError(message(path="SharedBasis", got=got, expected="a basis", todo=todo))
        m = self.core.shape[-2] if self.left is None else self.left.shape[-2]
        n = self.core.shape[-1] if self.right is None else self.right.shape[-1]
        for name, dims, size in (("rows", self.rows, m), ("cols", self.cols, n)):
            if dims is not None and math.prod(dims) != size:
                got, todo = f"{name}={dims} for a size of {size}", f"Split {size}."
                raise ShapeError(
                    message(path="SharedBasis", got=got, expected="its size", todo=todo)
                )
        check_sizes("SharedBasis", self.rows, self.cols, self.order, m * n)
        with regrouping(self, "side"):
            return super().validate()

    @property
    def _bases(self) -> tuple[Any, ...]:
        return tuple(x for x in (self.left, self.right) if x is not None)

    @property
    def _stack(self) -> int:
        return len(self.core.shape) - 2
