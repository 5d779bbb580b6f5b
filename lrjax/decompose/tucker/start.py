"""Where the iteration starts: the sequentially truncated HOSVD, or a sweep from random vectors."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.linalg import Accuracy
from lrjax.linalg.cut import cut
from lrjax.linalg.draw import normal
from lrjax.linalg.stack import dot, working
from lrjax.linalg.subspace import PASSES, leading_vectors
from lrjax.linalg.tensor import fold, halves, mode_gram, mode_product, project, unfold
from lrjax.linalg.truncated import is_rounding

SKETCH = 32
"""Most random vectors in place of a factor: 256^3 to ranks 32 ends a first sweep within 3 % of the
optimum and a second within 9e-4; with 16 vectors it is 4 % and 1.1e-3."""

ROUGH_PASSES = 2
"""Passes of subspace iteration where the first sweep has no start yet."""

LONG = 2
"""Length of a mode over that of all others together from which it is cut down first."""

Ranks = Sequence[int | None]


def initial(
    y: Array,
    ranks: Ranks,
    modes: Sequence[int],
    start: Any,
    scale: Array | float,
    finite: Array,
    key: Array,
) -> tuple[Array, Any, Array]:
    """The core of scale * y, orthonormal factors by ST-HOSVD or those given, and a rank too high.

    The core is what the cuts leave: the tensor is read by the first of them alone.
    """
    factors: list[Array | None] = [None] * len(ranks)
    deficient = jnp.zeros((), bool)
    for k in sorted(modes, key=lambda k: (ranks[k] / y.shape[k], k)):  # pyright: ignore
        if start[k] is None:
            found = cut(unfold(y, k), ranks[k], scale, finite, key, Accuracy.DEFAULT)  # pyright: ignore
            factors[k] = found.left
            deficient |= found.deficient
            y = fold(found.rest, k, (*y.shape[:k], ranks[k], *y.shape[k + 1 :]))  # pyright: ignore
        else:
            factors[k] = jnp.linalg.qr(working(start[k]))[0]
            y = mode_product(y, factors[k] * scale, k)  # pyright: ignore
        scale = 1.0
    return y, tuple(factors), deficient


def sketched(
    y: Array,
    ranks: Ranks,
    modes: Sequence[int],
    start: Any,
    scale: Array | float,
    finite: Array,
    key: Array,
) -> tuple[Array, Any, Array]:
    """As `initial`, by a sweep in which random vectors take the place of the last factors.

    The first half of the modes is found in the tensor times a few random vectors along the other
    half, which keeps their spans and reads the tensor once; the other half then in the tensor
    projected on the first.
    """
    left, right = halves(modes)
    factors: list[Array | None] = [None] * len(ranks)
    deficient = jnp.zeros((), bool)
    keys = jax.random.split(key, len(ranks))
    for k in right:
        width = min(ranks[k], SKETCH)  # pyright: ignore
        factors[k] = normal(keys[k], (y.shape[k], width), y.dtype)
    core = jnp.zeros(())
    for own, others in ((left, right), (right, left)) if right else ((left, right),):
        core = project(y, factors, others, scale) if others else y * scale
        for k in own:
            factors[k] = leading(core, k, ranks[k], keys[k], None, finite)  # pyright: ignore
            core = mode_product(core, factors[k], k)  # pyright: ignore
            deficient |= is_rounding(jnp.linalg.norm(unfold(core, k), axis=1))
    return core, tuple(factors), deficient


def leading(
    y: Array, mode: int, rank: int, key: Array, start: Array | None, finite: Array
) -> Float[Array, "n r"]:
    """Leading left singular vectors of an unfolding, orthonormal; without a start only roughly.

    A mode much longer than all others together is first turned into their number of coordinates.
    """
    find = functools.partial(leading_vectors, rank=rank, key=key, finite=finite)
    passes = ROUGH_PASSES if start is None else PASSES
    if y.shape[mode] ** 2 <= LONG * y.size:
        return find(mode_gram(y, mode), start=start, passes=passes)
    basis, rest = jnp.linalg.qr(jnp.where(finite, unfold(y, mode), 0))
    start = None if start is None else dot(basis.T, start)
    return dot(basis, find(dot(rest, rest.T), start=start, passes=passes))
