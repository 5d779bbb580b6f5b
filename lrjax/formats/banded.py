"""W = bands of rows, each a weight of its own, in an order that is stored: tables by frequency."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from lrjax.errors import ShapeError, message
from lrjax.formats.choice import Choice
from lrjax.formats.factored import Factored, is_factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.network import Network
from lrjax.formats.parts import cropped

BASE = 256
"""Places are stored by their digits to this base: bfloat16 holds them exactly."""


@register
@dataclasses.dataclass(frozen=True)
class Banded(Factored):
    """A table whose rows fall into bands, frequent words and rare ones (arXiv:1806.06950).

    W[v] = (bands one below the other)[place(v)]

    - `bands` are matrices [*B, m_b, n], arrays or factored, each with a rank of its own.
    - `index` is [*B, V, k]: the k digits, to the base 256 and the highest first, of each row's
      place. They are whole numbers in the dtype of the factors, and are counted among them.

    A lookup gathers a row of each band's factor and zeroes all but its own; a tied head computes
    the scores of every band and gathers them. Neither forms the table. Gradients reach the bands
    alone; `validate` tells if something moved the index.
    """

    bands: tuple[Any, ...]
    index: Float[Array, "*B V k"] | Any

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of rows of each band."""
        return tuple(band.shape[-2] for band in self.bands)

    @property
    def rank(self) -> tuple[int, ...]:
        """The rank of each band; that of a dense one is full."""
        return tuple(getattr(band, "rank", min(band.shape[-2:])) for band in self.bands)

    @property
    def place(self) -> Int[Array, "*B V"] | Any:
        """Where each row stands in the bands."""
        if isinstance(self.index, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.index.shape[:-1], jnp.uint32)
        digits = lax.convert_element_type(self.index, jnp.uint32)
        place = digits[..., 0]
        for k in range(1, digits.shape[-1]):
            place = place * BASE + digits[..., k]
        return place

    def networks(self) -> tuple[Network, ...]:
        """Every band's networks, their rows chosen by the index where they are the band's."""
        place, starts = self.place, itertools.accumulate(self.sizes, initial=0)
        return tuple(
            _chosen(net, place, low, band.shape[-2])
            for band, low in zip(self.bands, starts, strict=False)
            for net in (band.networks() if is_factored(band) else (Network.of(band),))
            for net in (cropped(net, (*net.shape[:-1], band.shape[-1])),)
        )

    @property
    def layout(self) -> Layout:
        """Rows of the table are rows, features columns."""
        n = len(self.index.shape)
        return Layout((n - 2,), (n - 1,))

    def shardings(self, place: Callable[[Any, PartitionSpec], Any], spec: PartitionSpec) -> Self:
        """The bands as the table is, and the whole index on every device."""
        stack = len(self.index.shape) - 2
        index = place(self.index, PartitionSpec(*tuple(spec)[:stack]))
        return dataclasses.replace(
            self, bands=tuple(place(b, spec) for b in self.bands), index=index
        )

    def validate(self) -> Self:
        """Check the bands, and that the index holds whole numbers that are places."""
        for band in self.bands:
            if is_factored(band):
                band.validate()
        try:
            place = np.asarray(self.place, np.int64)
        except (TypeError, jax.errors.TracerArrayConversionError):
            return super().validate()
        digits = np.asarray(self.index, np.float64)
        whole = (digits == np.round(digits)) & (digits >= 0) & (digits < BASE)
        if not whole.all() or place.max(initial=0) >= max(sum(self.sizes), 1):
            todo = "Keep optimisers and weight decay away from it."
            expected = f"digits of places below {sum(self.sizes)}"
            got = "an index that was moved"
            raise ShapeError(message(path="Banded", got=got, expected=expected, todo=todo))
        return super().validate()


def digits_of(place: Any, rows: int, dtype: Any) -> Array:
    """The index [*B, V, k] of places [*B, V] in a table of as many rows."""
    count = 1
    while BASE**count < rows:
        count += 1
    place = jnp.asarray(place, jnp.int32)
    return jnp.stack([place // BASE**k % BASE for k in reversed(range(count))], -1).astype(dtype)


def _chosen(net: Network, place: Any, low: int, rows: int) -> Network:
    """The network of a band as one of the whole table: its own rows, and zeros."""
    *stack, group, _ = net.dims
    new, sizes = net.fresh(), net.sizes
    labels = (*(k for dims in stack for k in dims), new)
    own = _over(place, lambda p: ((p >= low) & (p < low + rows)).astype(net.dtype))
    chosen, below = net.with_operand(own, labels), 1
    for k in reversed(group):  # each digit of the row by itself, so that a train stays one
        size, scale = sizes[k], below
        digit = _over(
            place,
            lambda p: jnp.where((p >= low) & (p < low + rows), p - low, 0) // scale % size,  # noqa: B023
        )
        chosen, below = chosen.with_operand(Choice(digit, (size,)), (*labels, k)), below * size
    return chosen.with_dims([*stack, (new,), net.dims[-1]])


def _over(place: Any, f: Callable[[Any], Any]) -> Any:
    """f(place), or its shape and dtype where only they are known."""
    return jax.eval_shape(f, place) if isinstance(place, jax.ShapeDtypeStruct) else f(place)
