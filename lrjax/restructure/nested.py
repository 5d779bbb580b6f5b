"""Smaller products of heads, for many modules at once: one solve at the largest size, then cuts."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from lrjax.decompose.attention import product
from lrjax.plan.batching import grouped


def products(
    rows: Sequence[Array], cols: Sequence[Array], sizes: Sequence[int]
) -> list[tuple[Array, Array] | None]:
    """The maps left [heads, h, size] and right [heads, size, h] of `product` for every module.

    The components of a smaller size are the first of a larger one, so that modules of one shape are
    solved in one call. None for a module that keeps its whole size.

    Args:
        rows: E[a a'] of each head of a module [heads, h, h].
        cols: likewise, of the other side.
        sizes: the size of each module's heads.
    """
    found: dict[int, tuple[Array, Array]] = {}
    smaller = [i for i, size in enumerate(sizes) if size < rows[i].shape[-1]]
    for group in grouped(smaller, lambda i: rows[i].shape):
        most = max(sizes[i] for i in group)
        own, other = (jnp.stack([side[i] for i in group]) for side in (rows, cols))
        solved = product(own, other, most)
        for i, left, right in zip(group, solved.left, solved.right, strict=True):
            found[i] = left[..., : sizes[i]], right[..., : sizes[i], :]
    return [found.get(i) for i in range(len(sizes))]
