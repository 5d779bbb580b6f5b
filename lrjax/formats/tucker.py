"""W = core x_1 factor_1 x_2 factor_2 ..., for convolutions, attention stacks and embeddings."""

import dataclasses
import math
from typing import Any, Self

from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class Tucker(Factored):
    """A core tensor and one factor a mode.

    W[i_1, ..., i_N] = sum_{a_1 ... a_N} core[a_1, ..., a_N] prod_k factors[k][i_k, a_k]

    - `core` is [*B, r_1, ..., r_N] and `factors[k]` is [*B, n_k, r_k], or None where mode k is not
      compressed (r_k = n_k, identity); leading axes B are stack axes.
    - `rows` and `cols` are the sizes of the weight's input and output dimensions, into which the
      modes regroup row-major; None takes every mode as a dimension.
    - `order` permutes rows + cols into the trailing dimensions of W.

    A convolution kernel [kh, kw, cin, cout] with factors (None, None, u, v), "Tucker-2", runs as a
    1x1 convolution to r_in channels, a kh x kw convolution to r_out channels that takes stride,
    padding and dilation, and a 1x1 convolution to cout (Kim et al., arXiv:1511.06530). A table
    whose rows and columns split into modes is looked up digit by digit.
    """

    core: Float[Array, "..."] | Any
    factors: tuple[Float[Array, "*B _ _"] | Any, ...] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> tuple[int, ...]:
        """The multilinear rank: sizes of the core's modes."""
        return tuple(self.core.shape[self._stack :])

    @property
    def _stack(self) -> int:
        return len(self.core.shape) - len(self.factors)

    def networks(self) -> tuple[Network, ...]:
        """One network: the core, and a factor a compressed mode."""
        inner = [f"r{k}" for k in range(len(self.factors))]
        outer = [
            r if f is None else f"n{k}"
            for k, (r, f) in enumerate(zip(inner, self.factors, strict=True))
        ]
        used = [k for k, f in enumerate(self.factors) if f is not None]
        terms = "".join(f", ... {outer[k]} {inner[k]}" for k in used)
        pattern = f"... {' '.join(inner)}{terms} -> ... {' '.join(outer)}"
        net = Network.parse(pattern, self.core, *(self.factors[k] for k in used))
        return (arrange(net, self._stack, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """The dense dimensions that rows and cols stand for."""
        if self.rows is None or self.cols is None:
            return default_layout(self.shape)
        return layout_of(self._stack, len(self.rows), len(self.cols), self.order)

    def validate(self) -> Self:
        """Check the factors, and that the modes regroup into rows and cols."""
        if self._stack < 0:
            got = f"{len(self.factors)} factors for a core of shape {self.core.shape}"
            todo = "Write None for a mode that is not compressed."
            raise ShapeError(message(path="Tucker", got=got, expected="one a mode", todo=todo))
        sizes = [
            self.core.shape[self._stack + k] if f is None else f.shape[-2]
            for k, f in enumerate(self.factors)
        ]
        check_sizes("Tucker", self.rows, self.cols, self.order, math.prod(sizes))
        with regrouping(self, "mode", f" for modes of sizes {sizes}"):
            return super().validate()
