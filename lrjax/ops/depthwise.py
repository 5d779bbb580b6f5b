"""Depthwise convolution as a sum of shifted products: the form that a CPU runs fast."""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

MOST_SHIFTS = 32
"""Window entries up to which the shifts are written out; each is one multiply-add of the signal."""


def pays(extent: Sequence[int]) -> bool:
    """Whether shifts beat a grouped convolution: on a CPU, for windows of a few entries.

    3 x 3 kernels of 128 and 512 channels as CP chains: time of dense over time of factored is 7.5
    to 9.5 by shifts (8.8 would be ideal), and 0.6 to 2.2 by XLA's grouped convolution there.
    """
    return jax.default_backend() == "cpu" and math.prod(extent) <= MOST_SHIFTS


def shifted(
    x: Float[Array, "n *s c"],
    kernel: Float[Array, "*k c"],
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
) -> Float[Array, "n *t c"]:
    """y[p] = sum_k kernel[k] x[stride p + dilation k - padding], channel by channel."""
    extent = kernel.shape[:-1]
    edges: list[Any] = [(0, 0, 0)]
    edges += [(a, b, d - 1) for (a, b), d in zip(padding, lhs_dilation, strict=True)]
    x = lax.pad(x, x.dtype.type(0), [*edges, (0, 0, 0)])
    spans = [r * (k - 1) + 1 for k, r in zip(extent, rhs_dilation, strict=True)]
    counts = [
        (n - span) // s + 1 for n, span, s in zip(x.shape[1:-1], spans, window_strides, strict=True)
    ]

    if min(counts, default=1) < 1:
        return jnp.zeros((x.shape[0], *(max(t, 0) for t in counts), x.shape[-1]), x.dtype)

    def term(at: tuple[int, ...]) -> Array:
        begin = [k * r for k, r in zip(at, rhs_dilation, strict=True)]
        end = [b + (t - 1) * s + 1 for b, t, s in zip(begin, counts, window_strides, strict=True)]
        part = lax.slice(
            x, (0, *begin, 0), (x.shape[0], *end, x.shape[-1]), (1, *window_strides, 1)
        )
        return part * kernel[at]

    return functools.reduce(operator.add, map(term, itertools.product(*map(range, extent))))
