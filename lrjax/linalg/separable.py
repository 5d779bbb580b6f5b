"""A Gram of a merged index as a Kronecker product of Grams of its parts."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def separate(
    side: Float[Array, "*S d d"] | Float[Array, "*S d"], sizes: Sequence[int], *, diagonal: bool
) -> list[Array]:
    """One Gram for every part of the row-major index d = (d_1 d_2 ...), by partial traces.

    Exact when the side is a Kronecker product. tr is preserved: the parts' traces multiply to it.
    A diagonal side gives diagonals. A zero side gives zeros.

    Args:
      side: Gram [*S, d, d], or its diagonal [*S, d].
      sizes: sizes of the parts.
      diagonal: whether `side` is a diagonal.
    """
    ends = 1 if diagonal else 2
    stack = side.shape[: side.ndim - ends]
    names = "abcdefghijkl"[: len(sizes)]
    grid = side.reshape(*stack, *(tuple(sizes) * ends))
    total = jnp.einsum(f"...{names * ends}->...", grid)
    root = jnp.where(total > 0, total, 1) ** (1 - 1 / len(sizes))
    parts = []
    for name in names:
        if diagonal:
            part = jnp.einsum(f"...{names}->...{name}", grid)
        else:
            second = names.replace(name, "z")
            part = jnp.einsum(f"...{names}{second}->...{name}z", grid)
        parts.append(part / root.reshape(*stack, *(1,) * ends))
    assert math.prod(sizes) == side.shape[-1]
    return parts
