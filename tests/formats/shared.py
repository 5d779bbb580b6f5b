"""Cases of shared bases and of diagonal and sparse parts: how to make them, and what they mean."""

import jax.numpy as jnp
import numpy as np

from lrjax.formats import Diagonal, LowRank, SharedBasis, Sparse, Sum


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape) / max(1, shape[-1]) ** 0.25, jnp.float32)


def shared(rng, *stack, entries=(4,), m=24, n=40, r=3, q=None, **layout):
    """A left basis of rank r, or bases on both sides."""
    left = normal(rng, *stack, m, r)
    right = None if q is None else normal(rng, *stack, q, n)
    return SharedBasis(normal(rng, *stack, *entries, r, q or n), left, right, **layout)


def shared_heads(rng, *stack):
    return shared(rng, *stack, q=7, rows=(24,), cols=(5, 8), order=(1, 0, 2))


def shared_dense(w, xp):
    core = w.core
    if w.left is not None:
        core = xp.einsum("...mr,...srq->...smq", w.left, core)
    return core if w.right is None else xp.einsum("...smq,...qn->...smn", core, w.right)


def shared_heads_dense(w, xp):
    """Layers of [d_model, heads, head_dim], stored as [layer, heads, d_model, head_dim]."""
    full = shared_dense(w, xp)
    return xp.moveaxis(full.reshape(*full.shape[:-1], 5, 8), -2, -3)


EDGES = (lambda: shared(np.random.default_rng(0), q=5, rows=(24,), cols=(5, 8), order=(1, 0, 2)),)


def diagonal(rng, *stack, p=3, q=5, b=8):
    return Diagonal(normal(rng, *stack, p, q, b))


def diagonal_dense(w, xp):
    *stack, p, q, b = w.values.shape
    full = xp.einsum("...pqi,ij->...piqj", w.values, np.eye(b, dtype=np.float32))
    return full.reshape(*stack, p * b, q * b)


def with_diagonal(rng, *stack):
    """Low rank and a diagonal: gates side by side, [h, 2 h]."""
    low = LowRank(normal(rng, *stack, 12, 2), normal(rng, *stack, 2, 24))
    return Sum((low, diagonal(rng, *stack, p=1, q=2, b=12)))


def with_diagonal_dense(w, xp):
    low, part = w.parts
    return xp.einsum("...mr,...rn->...mn", low.left, low.right) + diagonal_dense(part, xp)


def with_sparse(rng, *stack):
    """Low rank and two of every twelve rows of each column."""
    low = LowRank(normal(rng, *stack, 24, 2), normal(rng, *stack, 2, 40))
    index = np.argsort(rng.random((*stack, 40, 2, 12)), -1)[..., :2]
    sparse = Sparse(normal(rng, *stack, 40, 2, 2), jnp.asarray(index, jnp.float32), 12)
    return Sum((low, sparse))


def sparse_dense(w, xp):
    """Entry by entry, through a table of ones and zeros."""
    number = xp.asarray(w.index).astype(np.int32)
    table = xp.eye(w.group, dtype=w.values.dtype)[number]
    full = xp.einsum("...ngk,...ngki->...gin", w.values, table)
    return full.reshape(*full.shape[:-3], -1, full.shape[-1])


def with_sparse_dense(w, xp):
    low, part = w.parts
    return xp.einsum("...mr,...rn->...mn", low.left, low.right) + sparse_dense(part, xp)
