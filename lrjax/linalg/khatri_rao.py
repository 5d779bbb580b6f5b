"""Khatri-Rao products, and the matricised tensor times them (MTTKRP) for all modes in one sweep.

Factors are held terms first, [R, d]: every product then runs along contiguous memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg.stack import dot

Factors = tuple[Any, ...]
"""One factor [R, d_k] a mode."""

Update = Callable[[int, Float[Array, "R _"], Factors], Float[Array, "R _"]]


def khatri_rao(factors: Sequence[Float[Array, "R _"]]) -> Float[Array, "R d"]:
    """Outer products term by term, row-major: K[r, (i j ...)] = f_0[r, i] f_1[r, j] ..."""
    first, *rest = factors
    for f in rest:
        first = (first[:, :, None] * f[:, None, :]).reshape(first.shape[0], -1)
    return first


def compose(factors: Factors) -> Float[Array, "*d"]:
    """The dense tensor of a CP decomposition, T[i, j, ...] = sum_r f_0[r, i] f_1[r, j] ..."""
    shape = tuple(f.shape[1] for f in factors)
    cut = balanced_cut(shape)
    left, right = khatri_rao(factors[:cut]), khatri_rao(factors[cut:])
    return dot(left.T, right).reshape(shape)


def balanced_cut(shape: Sequence[int]) -> int:
    """Where to cut the modes in two so that both partial products are small.

    A sweep costs two products with the whole tensor at any cut; what the cut decides is the size
    of the intermediates, R times the sum of both sides. Contracting the small mode of a kernel
    first (the textbook's tree) would make an intermediate R / d times the tensor:
    512 x 512 x 9 with 64 terms then takes 118 ms a sweep instead of 10.
    """
    sides = lambda k: math.prod(shape[:k]) + math.prod(shape[k:])
    return min(range(1, len(shape)), key=sides, default=1)


def sweep(t: Float[Array, "*d"], factors: Factors, update: Update) -> Factors:
    """Update every factor once, in order, with the MTTKRP of the newest others (dimension tree).

    `update(k, M, factors)` gets M[r, d_k] = sum over the other indices of T times the product of
    the other factors, and hands back the new factor of mode k.
    """
    shape = t.shape
    if t.ndim == 1:
        return (update(0, jnp.broadcast_to(t, factors[0].shape), factors),)
    cut = balanced_cut(shape)
    matrix = t.reshape(math.prod(shape[:cut]), -1)
    partial = dot(khatri_rao(factors[cut:]), matrix.T)
    factors = _descend(partial, tuple(range(cut)), factors, update)
    partial = dot(khatri_rao(factors[:cut]), matrix)
    return _descend(partial, tuple(range(cut, t.ndim)), factors, update)


def _descend(partial: Array, modes: tuple[int, ...], factors: Factors, update: Update) -> Factors:
    """Update `modes`, given the tensor contracted with all others, partial [R, prod d]."""
    if len(modes) == 1:
        (k,) = modes
        return (*factors[:k], update(k, partial, factors), *factors[k + 1 :])
    cut = balanced_cut([factors[k].shape[1] for k in modes])
    left, right = modes[:cut], modes[cut:]
    size = math.prod(factors[k].shape[1] for k in left)
    cube = partial.reshape(partial.shape[0], size, -1)
    inner = khatri_rao([factors[k] for k in right])
    factors = _descend(jnp.sum(cube * inner[:, None, :], axis=2), left, factors, update)
    inner = khatri_rao([factors[k] for k in left])
    return _descend(jnp.sum(cube * inner[:, :, None], axis=1), right, factors, update)
