"""W = a grid of low-rank blocks, each of its own rank, with factors packed without gaps."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network
from lrjax.formats.selection import Selection


@register(meta=("slots", "rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class BlockLowRank(Factored):
    """A grid of p x q blocks, W_pq = the sum of its own rank-one terms u v'.

    - `left` is [*B, p, m, R]: the u of all terms of a block row, side by side.
    - `right` is [*B, q, C, n]: the v of all terms of a block column.
    - `slots`: for each (q, C) the slot p R + j of its u, or -1 where a block column has fewer than
      C terms; None is equal ranks r, with R = q r and C = p r.
    - `rows` and `cols` regroup p m and q n into dense dimensions, `order` permutes them, as in
      `Kronecker`.

    W is [*B, p m, q n]. Blocks may differ in rank as they like; what is stored is the block row
    and the block column of the largest sum of ranks, not p q times the largest rank. x W is a
    batched product with `left`, a gather of R numbers a block row, and a batched product with
    `right`.
    """

    left: Float[Array, "*B p m R"] | Any
    right: Float[Array, "*B q C n"] | Any
    slots: tuple[int, ...] | None = None
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """How many blocks there are in a column and in a row."""
        return self.left.shape[-3], self.right.shape[-3]

    @property
    def block_ranks(self) -> tuple[tuple[int, ...], ...]:
        """The rank of each block [p, q]."""
        (p, q), width = self.grid, self.left.shape[-1]
        if self.slots is None:
            return ((width // q,) * q,) * p
        found = np.zeros((p, q), int)
        for k, slot in enumerate(self.slots):
            if slot >= 0:
                found[slot // width, k // self.right.shape[-2]] += 1
        return tuple(map(tuple, found.tolist()))

    @property
    def rank(self) -> int:
        """The largest rank of a block."""
        return max(map(max, self.block_ranks))

    def networks(self) -> tuple[Network, ...]:
        """One network: left, the pattern of the slots, right."""
        (p, q), width, height = self.grid, self.left.shape[-1], self.right.shape[-2]
        if self.slots is None:
            net = Network.parse("... p m j, ... q k n -> ... (p m) (q n)", self.left, self.right)
            (*_, j), (*_, k, _) = net.labels
            net, (s, _) = net.split(j, (q, width // q))
            net, (t, _) = net.split(k, (p, height // p))
            net = _merged(net, s, t)
        else:
            pattern = Selection(self.slots, (q, height), (p, width))
            net = Network.parse(
                "... p m j, q k p j, ... q k n -> ... (p m) (q n)", self.left, pattern, self.right
            )
        return (arrange(net, len(self.left.shape) - 3, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows are p m, columns q n."""
        rows, cols = len(self.rows or (0,)), len(self.cols or (0,))
        return layout_of(len(self.left.shape) - 3, rows, cols, self.order)

    def validate(self) -> Self:
        """Check that the factors and slots fit together, and to rows, cols and order."""
        (p, q), width, height = self.grid, self.left.shape[-1], self.right.shape[-2]
        m, n = self.left.shape[-2], self.right.shape[-1]
        check_sizes("BlockLowRank", self.rows, self.cols, self.order, p * m * q * n)
        if self.slots is None:
            fits = width % q == 0 and height % p == 0 and width // q == height // p
            expected = "R = q r and C = p r, for blocks of one rank r"
        else:
            used = [s for s in self.slots if s >= 0]
            fits = len(self.slots) == q * height and len(set(used)) == len(used)
            fits &= max(used, default=-1) < p * width
            expected = f"{q * height} different slots below {p * width}, or -1"
        if not fits:
            got = f"left {tuple(self.left.shape)}, right {tuple(self.right.shape)}"
            todo = "Pack the blocks with `BlockLowRank.pack`."
            raise ShapeError(message(path="BlockLowRank", got=got, expected=expected, todo=todo))
        with regrouping(self, "block"):
            return super().validate()

    @classmethod
    def pack(
        cls,
        left: Float[Array, "*B p q m r"],
        right: Float[Array, "*B p q r n"],
        ranks: Sequence[Sequence[int]],
    ) -> Self:
        """The format from factors of every block, of which block (i, j) keeps `ranks[i][j]` terms.

        Where a block column has fewer terms than another, `right` ends in zeros; likewise `left`.
        """
        return cls(*_packed(left, right, np.asarray(ranks, int)))

    def trimmed(self, ranks: Sequence[Sequence[int]]) -> Self:
        """The leading `ranks[i][j]` terms of block (i, j), of blocks that have equal ranks.

        On the host, unless it is traced: every pattern of ranks has its own shapes, and gathers of
        those would compile each time.
        """
        left, right = _on_host(self.left), _on_host(self.right)
        (*lead, p, m, width), (*_, q, height, n) = left.shape, right.shape
        left = left.reshape(*lead, p, m, q, width // q).swapaxes(-3, -2)
        right = right.reshape(*lead, q, p, height // p, n).swapaxes(-4, -3)
        left, right, slots = _packed(left, right, np.asarray(ranks, int))
        left, right = jax.device_put((left, right))
        return dataclasses.replace(self, left=left, right=right, slots=slots)


def _packed(left: Any, right: Any, kept: np.ndarray) -> tuple[Any, Any, tuple[int, ...] | None]:
    """Both factors side by side, and the slots, from those of every block, in NumPy or JAX."""
    (*lead, p, q, m, r), n = left.shape, right.shape[-1]
    width, height = int(kept.sum(1).max(initial=0)), int(kept.sum(0).max(initial=0))
    slots = slots_of(kept)
    if slots is None:
        left = left[..., : width // q].swapaxes(-3, -2).reshape(*lead, p, m, width)
        right = right[..., : height // p, :].swapaxes(-4, -3)
        return left, right.reshape(*lead, q, height, n), None
    row, col = (np.full((size, many), -1) for size, many in ((p, width), (q, height)))
    for i, k in itertools.product(range(p), range(q)):
        terms = np.arange(kept[i, k])
        row[i, kept[i, :k].sum() + terms] = k * r + terms
        col[k, kept[:i, k].sum() + terms] = i * r + terms
    flat_left = left.swapaxes(-3, -2).reshape(*lead, p, m, q * r)
    flat_right = right.swapaxes(-4, -3).reshape(*lead, q, p * r, n)
    return _filled(flat_left, row, -1), _filled(flat_right, col, -2), slots


def slots_of(ranks: np.ndarray) -> tuple[int, ...] | None:
    """Which slot of the packed left factors each packed right factor meets; None if all equal."""
    (p, q), low = ranks.shape, int(ranks.min(initial=0))
    if (ranks == low).all():
        return None
    width, height = int(ranks.sum(1).max()), int(ranks.sum(0).max())
    slots = np.full((q, height), -1)
    for i, k in itertools.product(range(p), range(q)):
        terms = np.arange(ranks[i, k])
        slots[k, ranks[:i, k].sum() + terms] = i * width + ranks[i, :k].sum() + terms
    return tuple(slots.reshape(-1).tolist())


def _filled(x: Any, index: np.ndarray, axis: int) -> Any:
    """x[..., g, :, :] at index[g] along `axis`, zero where it is -1."""
    groups, terms = index.shape
    shape = (groups, terms, 1) if axis == -2 else (groups, 1, terms)
    at = index.reshape((1,) * (x.ndim - 3) + shape)
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    picked = xp.take_along_axis(x, xp.asarray(np.maximum(at, 0)), axis=axis)
    return picked * xp.asarray(at >= 0, x.dtype)


def _on_host(x: Any) -> Any:
    """The array in NumPy; itself while tracing."""
    try:
        return np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return x


def _merged(net: Network, s: int, t: int) -> Network:
    """Equal ranks: the axes split off are the other side's blocks, and the ranks are one label."""
    (left, right) = net.labels
    p, q = left[-4], right[-4]
    r = left[-1]
    names = {s: q, t: p, right[-2]: r}

    def rename(ls: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(names.get(k, k) for k in ls)

    return Network(net.operands, (rename(left), rename(right)), net.dims)


def packed_size(ranks: np.ndarray, m: int, n: int) -> int:
    """Parameters of blocks m x n of these ranks, as they are packed."""
    p, q = ranks.shape
    widest, tallest = int(ranks.sum(1).max(initial=0)), int(ranks.sum(0).max(initial=0))
    return math.prod((p, m, widest)) + math.prod((q, tallest, n))
