"""W with every row a tensor train of its own, for embeddings whose vocabulary may grow."""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.lazy import LazyArray
from lrjax.formats.modes import leading
from lrjax.formats.network import Network


@register(meta=("cols",))
@dataclasses.dataclass(frozen=True)
class TokenTrain(Factored):
    """A table of which each row is a matrix-product state of its own (TensorGPT, arXiv:2307.00526).

    W[v, (j_1 ... j_d)] = G_1[v, :, j_1, :] G_2[v, :, j_2, :] ... G_d[v, :, j_d, :]

    - `cores[k]` is [*B, V, r_{k-1}, n_k, r_k], with r_0 = r_d = 1; leading axes B are stack axes.
    - `cols` is the number of columns if it is less than prod n_k: the rest is padding, which costs
      parameters and is never computed.

    Rows share nothing, so that tokens are added without touching the others (`append`), and rows
    may be encoded on any device. A row costs sum_k r_{k-1} n_k r_k parameters and is read by
    gathering them; as a tied output head the format costs more arithmetic than the dense table.
    """

    cores: tuple[Float[Array, "*B V _ n _"] | Any, ...] | Any
    cols: int | None = None

    @property
    def rank(self) -> tuple[int, ...]:
        """The ranks between the cores, r_1 ... r_{d-1}."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def modes(self) -> tuple[int, ...]:
        """Digits' sizes of the columns, n_1 ... n_d."""
        return tuple(core.shape[-2] for core in self.cores)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, without padding."""
        *stack, _, _, _ = self.cores[0].shape
        return (*stack, self.cols or math.prod(self.modes))

    def networks(self) -> tuple[Network, ...]:
        """The network of the padded weight: `lazy` leaves the padding out."""
        d = len(self.cores)
        terms = ", ".join(f"... v r{k} n{k} r{(k + 1) % d}" for k in range(d))
        cols = " ".join(f"n{k}" for k in range(d))
        return (Network.parse(f"{terms} -> ... v ({cols})", *self.cores),)

    def lazy(self, name: str = "?") -> LazyArray:
        """The weight as a lazy array, without padding."""
        (net,) = self.networks()
        return leading(net, len(net.dims) - 1, self.shape[-1], name)

    @property
    def layout(self) -> Layout:
        """Tokens are rows, features columns."""
        n = len(self.shape)
        return Layout((n - 2,), (n - 1,))

    def append(self, other: Self) -> Self:
        """The table with the rows of `other` behind its own; nothing is solved again.

        Raises:
          ShapeError: the rows of the two tables have different digits or ranks.
        """
        if (self.modes, self.rank, self.shape[-1]) != (other.modes, other.rank, other.shape[-1]):
            form = lambda w: f"digits {w.modes}, ranks {w.rank}, {w.shape[-1]} columns"
            todo = "Factor the new rows with the specification of the table."
            raise ShapeError(
                message(path="TokenTrain", got=form(other), expected=form(self), todo=todo)
            )
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)], -4), self, other)

    def validate(self) -> Self:
        """Check the cores, and that the digits hold the columns."""
        if self.cols is not None and not 0 < self.cols <= math.prod(self.modes):
            got, expected = f"cols={self.cols}", f"1 to {math.prod(self.modes)}"
            todo = f"The digits {self.modes} hold as many columns."
            raise ShapeError(message(path="TokenTrain", got=got, expected=expected, todo=todo))
        return super().validate()
