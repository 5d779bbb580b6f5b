"""Block formats for the laws, and what they mean."""

import jax.numpy as jnp
import numpy as np

from lrjax.formats.blast import BLAST
from lrjax.formats.block_low_rank import BlockLowRank
from lrjax.formats.hodlr import HODLR
from lrjax.formats.hss import HSS
from lrjax.formats.monarch import Monarch
from lrjax.formats.permuted import Permuted
from tests.formats.tensors import generator, normal

RANKS = ((2, 0, 1, 3), (1, 4, 0, 0))


def packed(rng, *stack, ranks=RANKS, m=12, n=10, **layout):
    """Blocks of the given ranks; where a row has fewer terms than another the slots are zero."""
    p, q, r = len(ranks), len(ranks[0]), max(map(max, ranks))
    left = normal(rng, *stack, p, q, m, r)
    right = normal(rng, *stack, p, q, r, n)
    w = BlockLowRank.pack(left, right, ranks)
    return BlockLowRank(w.left, w.right, w.slots, **layout)


def packed_dense(w, xp):
    """Block by block, term by term."""
    width, height = w.left.shape[-1], w.right.shape[-2]
    (p, q), slots = w.grid, w.slots
    if slots is None:
        r = width // q
        slots = [i * width + j * r + s for j in range(q) for i in range(p) for s in range(r)]
    columns = []
    for j in range(q):
        blocks = [0 * (w.left[..., 0, :, :1] @ w.right[..., 0, :1, :])] * p
        for k in range(height):
            slot = slots[j * height + k]
            if slot >= 0:
                u, v = w.left[..., slot // width, :, slot % width], w.right[..., j, k, :]
                blocks[slot // width] = blocks[slot // width] + u[..., :, None] * v[..., None, :]
        columns.append(xp.concatenate(blocks, -2))
    return xp.concatenate(columns, -1)


def monarch(rng, *stack, grid=(4, 5), a=6, l=8, r=1, **layout):
    p, q = grid
    return Monarch(normal(rng, *stack, p, a, q, r), normal(rng, *stack, q, p, r, l), **layout)


def monarch_dense(w, xp):
    full = xp.einsum("...iakr,...kirl->...ialk", w.left, w.right)
    *stack, p, a, l, q = full.shape
    return full.reshape(*stack, p * a, l * q)


def blast(rng, *stack, grid=(2, 4), m=12, n=10, r=3, **layout):
    p, q = grid
    left, right = normal(rng, *stack, p, m, r), normal(rng, *stack, q, r, n)
    return BLAST(left, 1 + normal(rng, *stack, p, q, r), right, **layout)


def blast_dense(w, xp):
    p, q = w.couplings.shape[-3:-1]
    row = lambda i: [
        (w.left[..., i, :, :] * w.couplings[..., i, j, None, :]) @ w.right[..., j, :, :]
        for j in range(q)
    ]
    return xp.concatenate([xp.concatenate(row(i), -1) for i in range(p)], -2)


def hodlr(rng, *stack, levels=1, m=24, n=40, r=2, **layout):
    b = 2**levels
    count = [2 ** (k + 1) for k in range(levels)]
    lefts = tuple(normal(rng, *stack, c, m // c, r) for c in count)
    rights = tuple(normal(rng, *stack, c, r, n // c) for c in count)
    return HODLR(normal(rng, *stack, b, m // b, n // b), lefts, rights, **layout)


def hodlr_dense(w, xp):
    """By the recursion."""

    def half(level, i):
        if level == len(w.lefts):
            return w.diagonal[..., i, :, :]
        a, b = 2 * i, 2 * i + 1
        left, right = w.lefts[level], w.rights[level]
        off = lambda i, j: left[..., i, :, :] @ right[..., j, :, :]
        top = xp.concatenate([half(level + 1, a), off(a, b)], -1)
        return xp.concatenate([top, xp.concatenate([off(b, a), half(level + 1, b)], -1)], -2)

    return half(0, 0)


def hss(rng, *stack, ranks=(2,), m=24, n=40, **layout):
    """Bases of the given sizes, coarse first, from the coarsest core outwards."""
    bases, b = (), 2 ** len(ranks)
    finer = (*(2 * r for r in ranks[1:]), None)[: len(ranks)]
    for k, (r, side) in enumerate(zip(ranks, finer, strict=True), 1):
        core = HSS(normal(rng, *stack, 2**k, r, r), *bases, siblings=True)
        left = normal(rng, *stack, 2**k, side or m // b, r)
        bases = left, core, normal(rng, *stack, 2**k, r, side or n // b)
    return HSS(normal(rng, *stack, b, m // b, n // b), *bases, **layout)


def hss_dense(w, xp):
    """By the definition, with block-diagonal matrices written out."""

    def diag(x, move=0):
        zero, count = 0 * x[..., 0, :, :], range(x.shape[-3])
        row = lambda i: [x[..., i, :, :] if j == i ^ move else zero for j in count]
        return xp.concatenate([xp.concatenate(row(i), -1) for i in count], -2)

    full = diag(w.blocks, int(w.siblings))
    if w.core is not None:
        full = full + diag(w.left) @ hss_dense(w.core, xp) @ diag(w.right)
    return full


ROWS = tuple(np.random.default_rng(5).permutation(24).tolist())
COLS = tuple(np.random.default_rng(6).permutation(40).tolist())


def permuted(rng, *stack):
    return Permuted(blast(rng, *stack), ROWS, COLS)


def permuted_dense(w, xp):
    return blast_dense(w.weight, xp)[..., np.argsort(ROWS), :][..., np.argsort(COLS)]


PACKED_EDGES = (
    lambda: packed(generator(), ranks=((1, 1), (1, 1), (1, 1)), m=7, n=11),
    lambda: packed(generator(), ranks=((0, 2, 1),), m=1, n=7),
    lambda: packed(generator(), ranks=((0, 0), (0, 0))),
    lambda: packed(generator(), ranks=((3,), (1,)), m=5, n=3),
)
MONARCH_EDGES = (
    lambda: monarch(generator(), grid=(1, 3), a=1, l=7),
    lambda: monarch(generator(), r=2),
)
BLAST_EDGES = (
    lambda: blast(generator(), grid=(1, 3), m=1, n=7, r=1),
    lambda: blast(generator(), r=0),
)
HODLR_EDGES = (
    lambda: hodlr(generator(), levels=3, m=56, n=40),
    lambda: hodlr(generator(), levels=0),
    lambda: hodlr(generator(), levels=2, r=0),
)
HSS_EDGES = (
    lambda: hss(generator(), ranks=(3, 4, 2), m=56, n=40),
    lambda: hss(generator(), ranks=()),
    lambda: hss(generator(), ranks=(1, 1), m=4, n=12),
)


def exactly_packed(w, grid=(2, 4)):
    """Every block by its own SVD, at full rank."""
    x = np.asarray(w)
    *stack, rows, cols = x.shape
    p, q = grid
    x = x.reshape(*stack, p, rows // p, q, cols // q).swapaxes(-3, -2)
    u, s, vt = jnp.linalg.svd(jnp.asarray(x), full_matrices=False)
    return BlockLowRank.pack(u * s[..., None, :], vt, [[s.shape[-1]] * q] * p)
