"""What a weight costs: parameters, bytes, and arithmetic per row of activations."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from lrjax.formats.factored import Factored, abstract
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.network import Network
from lrjax.formats.product import flops
from lrjax.trees import flatten


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, bytes, and floating-point operations."""

    params: int
    bytes: int
    flops: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.bytes + other.bytes, self.flops + other.flops)


def cost(w: Any, rows: int = 1, *, layout: Layout | None = None) -> Cost:
    """The cost of a weight, or of all weights of a tree together.

    FLOPs are those of `x @ W` for `rows` rows of activations in the streaming order, a
    multiply-add counted as two; every entry of a stack axis is applied to all rows. Vectors
    (biases, scales) count no FLOPs.

    Args:
      w: array, factored weight, or a tree of them (abstract arrays too).
      rows: number of activation rows.
      layout: rows and columns of the weight; by default the format's own.
    """
    leaves, _ = flatten(w)
    total = Cost(0, 0, 0)
    for leaf in leaves.values():
        factors = jax.tree.leaves(leaf)
        size = lambda x: math.prod(jnp.shape(x))
        params = sum(map(size, factors))
        nbytes = sum(size(x) * jnp.dtype(jnp.result_type(x)).itemsize for x in factors)
        total += Cost(params, nbytes, _flops(leaf, rows, layout))
    return total


def _flops(w: Any, rows: int, layout: Layout | None) -> int:
    if isinstance(w, Factored):
        nets, default = abstract(w).networks(), w.layout
    else:
        nets = (Network.of(jax.ShapeDtypeStruct(jnp.shape(w), jnp.result_type(w))),)
        default = default_layout(jnp.shape(w))
    shape = nets[0].shape
    if len(shape) < 2:
        return 0
    stack, inputs, outputs = (layout or default).resolve(len(shape))
    size = lambda dims: math.prod(shape[d] for d in dims)
    products = sum(flops(net, rows, stack, inputs, outputs) for net in nets)
    return products + (len(nets) - 1) * rows * size(stack) * size(outputs)
