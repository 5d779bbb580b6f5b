"""One solver, many equal shapes: leading stack axes by `lax.map` or `vmap`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

FEW_ROWS = 64
"""Rows from which a product with a transposed matrix is bound by arithmetic; see `dot_t`."""


def dot(a: Array, b: Array) -> Array:
    """Product in the full precision of its inputs, on every backend."""
    return jnp.matmul(a, b, precision="highest")


def dot_t(a: Array, b: Array) -> Array:
    """A B' for few rows A and a large B, in the full precision of its inputs.

    XLA's CPU backend is slow where a large right operand is read along its rows, and quick where
    that is the left one, (B A')': 4 and 16 rows times (1152 x 2048)' take 0.18 and 0.41 ms so, 0.69
    and 0.89 ms as they stand. The barriers keep the small transposes out of the product.
    """
    if len(a) > FEW_ROWS or jax.default_backend() != "cpu":
        return dot(a, b.T)
    barrier = lax.optimization_barrier
    return barrier(barrier(dot(b, barrier(a.T))).T)


def working(x: Array) -> Array:
    """The array in the precision that solvers work in: float32, or float64 if it came so."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def over_stack(solve: Callable[..., Any], arrays: Sequence[Array | None], core: int) -> Any:
    """solve(*matrices) for every index of the leading axes that all arrays share.

    The first array is [*S, ...] with `core` trailing axes; every other one begins with the same
    *S; a None is handed on. On a CPU the stack is a loop: `vmap` turns a product of a large and a
    narrow matrix into a batched one that XLA's CPU backend runs slower (48 x 768 x 768, rank 64:
    306 ms against 218 ms), and it defeats `lax.cond`. Elsewhere it is a batch.
    """
    stack = arrays[0].shape[: arrays[0].ndim - core]  # pyright: ignore
    if not stack:
        return solve(*arrays)
    flat = [
        None if x is None else x.reshape(math.prod(stack), *x.shape[len(stack) :]) for x in arrays
    ]
    single = lambda present: solve(*_fill(arrays, present))
    present = [x for x in flat if x is not None]
    looped = jax.default_backend() == "cpu"
    out = lax.map(single, present) if looped else jax.vmap(single)(present)
    return jax.tree.map(lambda x: x.reshape(*stack, *x.shape[1:]), out)


def _fill(pattern: Sequence[Any], present: Sequence[Array]) -> list[Array | None]:
    rest = iter(present)
    return [None if x is None else next(rest) for x in pattern]
