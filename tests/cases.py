"""The formats that obey the laws: one `Case` a line, how to make a weight and what it means."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrjax.formats import Factored, LowRank, Network, Sum, register
from tests.formats import banded as bands
from tests.formats import blocks as grids
from tests.formats import shared, sums, tensors


@dataclasses.dataclass(frozen=True)
class Case:
    """One format.

    Attributes:
      name: shown by pytest.
      make: `make(rng, *stack) -> weight`, with leading stack axes; the dense matrix is not square.
      dense: the definition, `dense(weight, xp) -> array`, in NumPy or `jax.numpy`.
      exact: `exact(w) -> weight` that equals the dense matrix w, where the format can.
      edges: weights at the edges: rank one, empty, prime sizes.
      streams: False if a factor has the dense shape.
    """

    name: str
    make: Callable[..., Factored]
    dense: Callable[[Any, Any], Any]
    exact: Callable[[Any], Factored] | None = None
    edges: tuple[Callable[[], Factored], ...] = ()
    streams: bool = True


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(rng, *shape):
    """A random factor (from NumPy: nothing to compile)."""
    return jnp.asarray(rng.standard_normal(shape) / max(1, shape[-1]) ** 0.25, jnp.float32)


def low_rank(rng, *stack, m=24, n=40, r=3, **layout):
    return LowRank(normal(rng, *stack, m, r), normal(rng, *stack, r, n), **layout)


def low_rank_dense(w, xp):
    return xp.einsum("...mr,...rn->...mn", w.left, w.right)


def head_dense(w, xp):
    """[d_model, head, head_dim] cut behind d_model, then moved to [head, d_model, head_dim]."""
    full = low_rank_dense(w, xp)
    return xp.moveaxis(full.reshape(*full.shape[:-1], 5, 8), -2, -3)


def adapted(rng, *stack):
    return Sum((normal(rng, *stack, 24, 40), low_rank(rng, *stack)))


def adapted_dense(w, xp):
    return w.parts[0] + low_rank_dense(w.parts[1], xp)


@register
@dataclasses.dataclass(frozen=True)
class Blocks(Factored):
    """A reader's own format: a grid of low-rank blocks, [*B, p, q, m, r] and [*B, p, q, r, n]."""

    left: Any
    right: Any

    def networks(self):
        pattern = "... p q m r, ... p q r n -> ... (p m) (q n)"
        return (Network.parse(pattern, self.left, self.right),)


def blocks(rng, *stack, grid=(2, 4), m=12, n=10, r=2):
    return Blocks(normal(rng, *stack, *grid, m, r), normal(rng, *stack, *grid, r, n))


def blocks_dense(w, xp):
    full = xp.einsum("...pqmr,...pqrn->...pmqn", w.left, w.right)
    p, m, q, n = full.shape[-4:]
    return full.reshape(*full.shape[:-4], p * m, q * n)


CASES = [
    Case(
        "low_rank",
        low_rank,
        low_rank_dense,
        exact=lambda w: LowRank.from_dense(w, min(w.shape[-2:])),
        edges=(
            lambda: low_rank(generator(), r=1),
            lambda: low_rank(generator(), m=7, n=11, r=2),
            lambda: low_rank(generator(), r=0),
            lambda: low_rank(generator(), n=0),
            lambda: low_rank(generator(), 0),
        ),
    ),
    Case(
        "low_rank_heads",
        functools.partial(low_rank, cols=(5, 8), order=(1, 0, 2)),
        head_dense,
    ),
    Case("sum", adapted, adapted_dense, exact=lambda w: Sum((w,)), streams=False),
    Case(
        "sum_of_low_ranks",
        lambda rng, *stack: Sum((low_rank(rng, *stack), low_rank(rng, *stack, r=2))),
        lambda w, xp: sum(low_rank_dense(part, xp) for part in w.parts),
    ),
    Case(
        "blocks",
        blocks,
        blocks_dense,
        edges=(lambda: blocks(generator(), grid=(1, 3), m=1, n=7, r=1),),
    ),
    Case("tucker", tensors.table, tensors.tucker_dense, edges=tensors.TUCKER_EDGES),
    Case("train", tensors.train3, tensors.train_dense, edges=tensors.TRAIN_EDGES),
    Case("ring", tensors.ring3, tensors.ring_dense, edges=tensors.RING_EDGES),
    Case("tokens", tensors.tokens, tensors.tokens_dense, streams=False),
    Case("kronecker", sums.kronecker, sums.kronecker_dense, edges=sums.KRONECKER_EDGES),
    Case("cp", sums.table, sums.cp_dense, edges=sums.CP_EDGES),
    Case(
        "block_low_rank",
        grids.packed,
        grids.packed_dense,
        exact=grids.exactly_packed,
        edges=grids.PACKED_EDGES,
    ),
    Case("monarch", grids.monarch, grids.monarch_dense, edges=grids.MONARCH_EDGES),
    Case("blast", grids.blast, grids.blast_dense, edges=grids.BLAST_EDGES),
    Case("permuted", grids.permuted, grids.permuted_dense),
    Case("hodlr", grids.hodlr, grids.hodlr_dense, edges=grids.HODLR_EDGES),
    Case("hss", functools.partial(grids.hss, ranks=(2, 3)), grids.hss_dense, edges=grids.HSS_EDGES),
    Case("shared_basis", shared.shared_heads, shared.shared_heads_dense, edges=shared.EDGES),
    Case("low_rank_diagonal", shared.with_diagonal, shared.with_diagonal_dense),
    Case("banded", bands.banded, bands.banded_dense, edges=bands.EDGES[:1]),
    Case("low_rank_sparse", shared.with_sparse, shared.with_sparse_dense),
]
