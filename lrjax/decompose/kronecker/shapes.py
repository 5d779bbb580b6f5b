"""Which factor shapes a Kronecker sum may have, and how well each would do."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.decompose.kronecker.nearest import whiten_for
from lrjax.linalg.truncated import singular_values
from lrjax.linalg.van_loan import rearrange

SHAPES = 8
"""Shapes that a search compares: each costs one eigenvalue problem of order min(i j, k l)."""

ORDER = 1024
"""Largest such order; above it the decomposition would cost more than a plain SVD of W."""


def divisors(n: int) -> list[int]:
    """All divisors, rising."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def candidates(m: int, n: int, count: int = SHAPES) -> tuple[tuple[int, int], ...]:
    """Factor shapes (i, j) of an m x n weight, spread over the sizes that a term can have.

    Of all divisor pairs with min(i j, k l) at most `ORDER`, those whose terms have the most
    distinct prices (i j + k l parameters): for each of `count` log-spaced prices the pair nearest
    to it, the one with the squarest factors on a tie. Neither factor may be a single number.
    """
    pairs = []
    for i in divisors(m):
        for j in divisors(n):
            first, second = i * j, (m // i) * (n // j)
            if 1 < min(first, second) <= ORDER:
                skew = max(i / j, j / i) * max(m * j / (i * n), i * n / (m * j))
                pairs.append((first + second, skew, (i, j)))
    if not pairs:
        return ()
    low, high = min(pairs)[0], max(pairs)[0]
    chosen: dict[tuple[int, int], None] = {}
    for step in range(count):
        price = low * (high / low) ** (step / max(count - 1, 1))
        far = lambda p, price=price: (max(p[0] / price, price / p[0]), p[1])
        chosen.setdefault(min(pairs, key=far)[2])
    return tuple(chosen)


def spectra(
    w: Float[Array, "*S m n"],
    shapes: tuple[tuple[int, int], ...],
    rows: Array | None,
    cols: Array | None,
) -> Float[Array, "*S c k"]:
    """Singular values of the rearranged, whitened weight for every shape, padded with zeros.

    Tails of squares are the losses of the optimum under the separable part of the metric.
    """
    white = [rearrange(whiten_for(w, shape, rows, cols), *shape) for shape in shapes]
    values = [singular_values(r) for r in white]
    size = max(v.shape[-1] for v in values)
    fill = lambda v: jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, size - v.shape[-1])])
    return jax.lax.stop_gradient(jnp.stack([fill(v) for v in values], axis=-2))
