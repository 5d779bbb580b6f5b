"""What a choice gathers, not yet gathered: the sum that follows takes it tile by tile.

Every column of a sparse matrix picks its own few inputs. Gathered for a whole batch these are as
many numbers as the matrix has entries, for each row, and single ones from all over memory. On a CPU
the batch is laid out behind the inputs instead, so that what an entry picks is a run of the batch,
and a tile of columns adds up its entries in the cache, one after the other. 768 x 3072 with 16
entries a column, milliseconds for 8, 32 and 512 rows: gathered .14, .84 and 94, row by row .27, .96
and 16, in tiles .11, .17 and 2.5, as `BCSR` .19 for 32 rows and 4.8 for 512; dense .27, .95 and 12.
With 76 entries a column the tiles take .5, .7 and 7. Other devices gather.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

LEAST = 1 << 17
"""Fewest numbers picked that are not gathered: fewer stay in the cache, and one row is a run."""

TILE = 64
"""Columns whose sums are under way at once: 64 KB of them for a batch of 256."""

UNROLLED = 16
"""Most entries of a column that one pass over its sums adds."""


@dataclasses.dataclass(frozen=True)
class Picked:
    """The array x[..., at]: of each row of `x` [*rest, slots] what `at` [*outs] says."""

    x: Float[Array, "*rest slots"]
    at: UInt32[Array, "*outs"]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the array."""
        return (*self.x.shape[:-1], *self.at.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> Any:
        """That of the array."""
        return self.x.dtype

    def astype(self, dtype: Any) -> "Picked":
        """The array in another dtype."""
        return Picked(self.x.astype(dtype), self.at)

    def gathered(self) -> Array:
        """The array itself."""
        at = (*(slice(None),) * (self.x.ndim - 1), self.at)
        return self.x.at[at].get(mode="promise_in_bounds")

    def sums(self, values: Float[Array, "*#outs"], kept: Sequence[int]) -> Float[Array, "..."]:
        """The sum of values * x[..., at] over all axes of `at` but those `kept`: [*rest, *kept].

        In float32 at least, whatever the dtype.
        """
        gone = [d for d in range(self.at.ndim) if d not in kept]
        sizes = tuple(self.at.shape[d] for d in kept)
        flat = lambda y: y.transpose((*kept, *gone)).reshape(math.prod(sizes), -1)
        at, values = flat(self.at), flat(jnp.broadcast_to(values, self.at.shape))
        rest = self.x.shape[:-1]
        x = self.x.reshape(math.prod(rest), -1)
        return _tiled(x.T, at, values).T.reshape(*rest, *sizes)


def lazily(x: Float[Array, "*rest slots"], at: UInt32[Array, "*outs"]) -> bool:
    """Whether a sum of what is picked is worth waiting for."""
    if jax.default_backend() != "cpu" or not jax.sharding.get_abstract_mesh().empty:
        return False
    rows = math.prod(x.shape[:-1])
    return rows > 1 and rows * at.size >= LEAST


def _tiled(
    x: Float[Array, "slots b"], at: UInt32[Array, "n s"], values: Float[Array, "n s"]
) -> Float[Array, "n b"]:
    """The sums of every column, a tile of columns at a time; what fills up tiles weighs nothing."""
    n, s = at.shape
    parts, tile = -(-s // UNROLLED), min(TILE, n)
    each, tiles = -(-s // parts), -(-n // tile)

    def cut(y: Array) -> Array:
        """[tiles, parts, each, tile]."""
        y = jnp.pad(y, ((0, tiles * tile - n), (0, parts * each - s)))
        return y.reshape(tiles, tile, parts, each).transpose(0, 2, 3, 1)

    def add(y: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        for at, weight in zip(*part, strict=True):
            y = y + _working(_rows(x, at)) * _working(weight)[:, None]
        return y, None

    def one(columns: tuple[Array, Array]) -> Array:
        zero = _working(jnp.zeros((tile, x.shape[1]), x.dtype))
        if parts > 1:
            return lax.scan(add, zero, columns)[0]
        return add(zero, (columns[0][0], columns[1][0]))[0]

    pieces = cut(at), cut(values)
    y = lax.map(one, pieces) if tiles > 1 else one((pieces[0][0], pieces[1][0]))
    return y.reshape(tiles * tile, -1)[:n]


def _working(x: Array) -> Array:
    """The array in the dtype that sums are held in."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def _rows(x: Array, at: Array) -> Array:
    return x.at[at].get(mode="promise_in_bounds")
