"""What tensor trains and rings share: cores whose digits merge into the rows and columns of W."""

import dataclasses
import math
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored
from lrjax.formats.layout import Layout
from lrjax.formats.lazy import LazyArray
from lrjax.formats.modes import arrange, check_sizes, dense_dims, layout_of, leading, regrouping
from lrjax.formats.network import Network


@dataclasses.dataclass(frozen=True)
class Chain(Factored):
    """A matrix whose row and column indices are numbers with the digits i_1 ... i_d, j_1 ... j_d.

    W[(i_1 ... i_d), (j_1 ... j_d)] = trace G_1[:, i_1, j_1, :] ... G_d[:, i_d, j_d, :]

    - `cores[k]` is [*B, r_k, m_k, n_k, r_{k+1}], and the last bond closes on the first, r_d = r_0;
      leading axes B are stack axes.
    - `rows` and `cols` split the prod m_k rows and prod n_k columns into dense dimensions; None
      does not split. A single row (or column) dimension may be smaller than the product: the rows
      behind it are padding. They cost parameters and bytes, and are neither computed nor returned.
    - `order` permutes rows + cols into the trailing dimensions of W.
    """

    cores: tuple[Float[Array, "*B _ m n _"] | Any, ...] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def modes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Digits' sizes of the rows, m_1 ... m_d, and of the columns, n_1 ... n_d."""
        sizes = lambda axis: tuple(core.shape[axis] for core in self.cores)
        return sizes(-3), sizes(-2)

    @property
    def padded(self) -> tuple[int, int]:
        """Rows and columns that the cores hold in excess of the weight's."""
        (m, n), (rows, cols) = map(math.prod, self.modes), self._dims
        return m - math.prod(rows), n - math.prod(cols)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, without padding."""
        stack = self.cores[0].shape[: self._stack]
        return dense_dims((*stack, 0, 0), *self._dims, self.order, self._stack)

    def networks(self) -> tuple[Network, ...]:
        """The network of the padded weight: `lazy` leaves the padding out."""
        rows, cols = self._padded_dims
        return (arrange(self._closed(), self._stack, rows, cols, self.order),)

    def lazy(self, name: str = "?") -> LazyArray:
        """The weight as a lazy array: of a padded dimension the runs that are not padding."""
        (net,) = self.networks()
        stack = self._stack
        w = LazyArray((net,), None, name)
        for axis in range(stack, stack + len(self.shape[stack:])):
            size = self.shape[axis]
            if size != net.shape[axis]:
                w = _leading(w, axis, size)
        return w

    @property
    def layout(self) -> Layout:
        """The dense dimensions that rows and cols stand for."""
        rows, cols = self._dims
        return layout_of(self._stack, len(rows), len(cols), self.order)

    def validate(self) -> Self:
        """Check the cores, and that the digits hold rows and cols."""
        kind, modes = type(self).__name__, self.modes
        for name, dims, own in zip(("rows", "cols"), self._dims, modes, strict=True):
            excess = math.prod(own) - math.prod(dims)
            if excess < 0 or (excess and len(dims) > 1):
                got = f"{name}={dims} for digits {own}"
                todo = "Pad a single dimension only, and by digits whose product is not smaller."
                expected = f"{name} of {math.prod(own)} entries"
                raise ShapeError(message(path=kind, got=got, expected=expected, todo=todo))
        rows, cols = self._padded_dims
        check_sizes(kind, rows, cols, self.order, math.prod(rows) * math.prod(cols))
        with regrouping(self, "digit", f" for digits {modes}"):
            return super().validate()

    @property
    def _stack(self) -> int:
        return len(self.cores[0].shape) - 4

    @property
    def _dims(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of the row and the column dimensions."""
        m, n = (math.prod(sizes) for sizes in self.modes)
        return self.rows or (m,), self.cols or (n,)

    @property
    def _padded_dims(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        (m, n), (rows, cols) = map(math.prod, self.modes), self._dims
        return rows if len(rows) > 1 else (m,), cols if len(cols) > 1 else (n,)

    def _closed(self) -> Network:
        d = len(self.cores)
        terms = [f"... r{k} m{k} n{k} r{(k + 1) % d}" for k in range(d)]
        side = lambda s: "(" + " ".join(f"{s}{k}" for k in range(d)) + ")"
        pattern = f"{', '.join(terms)} -> ... {side('m')} {side('n')}"
        return Network.parse(pattern, *self.cores)


def _leading(w: Any, axis: int, size: int) -> LazyArray:
    """The first `size` entries along one dimension."""
    if w.axis is None:
        return leading(w.terms[0], axis, size, w.name)
    return dataclasses.replace(w, terms=tuple(_leading(part, axis, size) for part in w.terms))
