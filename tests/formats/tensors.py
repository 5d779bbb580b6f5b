"""Random weights of the tensor formats, and what they mean, for laws and tests."""

import functools
import math
import string

import jax.numpy as jnp
import numpy as np

from lrjax.formats.tensor_ring import TensorRing
from lrjax.formats.tensor_train import TensorTrain
from lrjax.formats.token_train import TokenTrain
from lrjax.formats.tucker import Tucker


def generator(seed=0):
    return np.random.default_rng(seed)


def normal(rng, *shape):
    """A factor whose products stay of order one."""
    return jnp.asarray(rng.standard_normal(shape) / max(1, shape[-1]) ** 0.25, jnp.float32)


def tucker(rng, *stack, modes=(24, 40), ranks=(3, 4), **layout):
    """Rank None leaves a mode uncompressed."""
    inner = (n if r is None else r for n, r in zip(modes, ranks, strict=True))
    core = normal(rng, *stack, *inner)
    factors = tuple(
        None if r is None else normal(rng, *stack, n, r) for n, r in zip(modes, ranks, strict=True)
    )
    return Tucker(core, factors, **layout)


def tucker_dense(w, xp):
    """The definition, mode by mode."""
    full, modes = w.core, len(w.factors)
    stack = full.ndim - modes
    inner = string.ascii_lowercase[:modes]
    for k, f in enumerate(w.factors):
        if f is not None:
            out = inner.replace(inner[k], "z")
            full = xp.einsum(f"...{inner},...z{inner[k]}->...{out}", full, f)
    return dense_dims(full.reshape(*full.shape[:stack], math.prod(full.shape[stack:])), w)


def train(rng, *stack, digits=((4, 6), (5, 8)), ranks=(3,), **layout):
    """Boundary ranks are one."""
    bonds = (1, *ranks, 1)
    shapes = zip(bonds[:-1], digits[0], digits[1], bonds[1:], strict=True)
    return TensorTrain(tuple(normal(rng, *stack, *shape) for shape in shapes), **layout)


def train_dense(w, xp):
    """Cores joined left to right, digits sorted into rows and columns, padding cut off."""
    full = w.cores[0][..., 0, :, :, :]
    for core in w.cores[1:]:
        full = xp.einsum("...xyr,...rmns->...xmyns", full, core)
        *stack, x, m, y, n, s = full.shape
        full = full.reshape(*stack, x * m, y * n, s)
    return chain_dims(full[..., 0], w)


def ring(rng, *stack, digits=((4, 6), (5, 8)), ranks=(2, 3), **layout):
    """The last bond closes on the first."""
    bonds = (*ranks, ranks[0])
    shapes = zip(bonds[:-1], digits[0], digits[1], bonds[1:], strict=True)
    return TensorRing(tuple(normal(rng, *stack, *shape) for shape in shapes), **layout)


def ring_dense(w, xp):
    """A train for every value of the bond that closes the ring, added up."""
    first, *others = w.cores
    total = 0
    for a in range(first.shape[-4]):
        ends = [first[..., a : a + 1, :, :, :], *others]
        ends[-1] = ends[-1][..., a : a + 1]
        total = total + train_dense(TensorTrain(tuple(ends), w.rows, w.cols, w.order), xp)
    return total


def chain_dims(full, w):
    """Digits' rows and columns without padding, under the dense dimensions."""
    if w.rows is not None and len(w.rows) == 1:
        full = full[..., : w.rows[0], :]
    if w.cols is not None and len(w.cols) == 1:
        full = full[..., : w.cols[0]]
    if w.rows is None and w.cols is None:
        return full
    rows, cols = w.rows or full.shape[-2:-1], w.cols or full.shape[-1:]
    return permuted(full.reshape(*full.shape[:-2], *rows, *cols), w.order)


def tokens(rng, *stack, rows=24, digits=(4, 10), ranks=(3,), **layout):
    bonds = (1, *ranks, 1)
    shapes = zip(bonds[:-1], digits, bonds[1:], strict=True)
    return TokenTrain(tuple(normal(rng, *stack, rows, *shape) for shape in shapes), **layout)


def tokens_dense(w, xp):
    """Row by row, left to right."""
    full = w.cores[0][..., 0, :, :]
    for core in w.cores[1:]:
        full = xp.einsum("...vxr,...vrns->...vxns", full, core)
        *stack, v, x, n, s = full.shape
        full = full.reshape(*stack, v, x * n, s)
    return full[..., 0][..., : w.cols]


def dense_dims(flat, w):
    """A flat weight under its dense dimensions."""
    if w.rows is None:
        stack = flat.ndim - 1
        modes = [
            w.core.shape[stack + k] if f is None else f.shape[-2] for k, f in enumerate(w.factors)
        ]
        return flat.reshape(*flat.shape[:-1], *modes)
    return permuted(flat.reshape(*flat.shape[:-1], *w.rows, *w.cols), w.order)


def permuted(full, order):
    """Trailing dimensions in the given order."""
    if order is None:
        return full
    stack = full.ndim - len(order)
    return full.transpose((*range(stack), *(stack + i for i in order)))


table = functools.partial(tucker, modes=(4, 6, 4, 10), ranks=(3, 3, 3, 3), rows=(24,), cols=(40,))
train3 = functools.partial(train, digits=((4, 3, 2), (2, 5, 4)), ranks=(3, 2))

ring3 = functools.partial(ring, digits=((4, 3, 2), (2, 5, 4)), ranks=(2, 3, 2))

TUCKER_EDGES = (
    lambda: tucker(generator(), ranks=(1, 1)),
    lambda: tucker(generator(), modes=(7, 11), ranks=(None, 3)),
    lambda: tucker(generator(), modes=(7, 0)),
    lambda: tucker(generator(), 0),
)
TRAIN_EDGES = (
    lambda: train(generator(), ranks=(1,)),
    lambda: train(generator(), digits=((7, 1), (11, 13))),
    lambda: train(generator(), digits=((7,), (3,)), ranks=()),
    lambda: train(generator(), 0),
)
RING_EDGES = (
    lambda: ring(generator(), ranks=(1, 1)),
    lambda: ring(generator(), digits=((7, 1), (11, 13))),
    lambda: ring(generator(), digits=((7,), (3,)), ranks=(2,)),
    lambda: ring(generator(), 0),
)
