"""W = left @ right, for dense layers, DenseGeneral kernels, convolutions and stacked layers."""

import dataclasses
import math
from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class LowRank(Factored):
    """A weight of low rank, W = left @ right.

    - `left` is [*B, m, r] and `right` [*B, r, n]; leading axes B are stack axes.
    - `rows` splits m, and `cols` splits n, into dense dimensions; None does not split.
    - `order` permutes rows + cols into the trailing dimensions of W: dimension i is
      `(rows + cols)[order[i]]`.

    A kernel [heads, d_model, head_dim] that contracts d_model has rows=(d_model,),
    cols=(heads, head_dim), order=(1, 0, 2); a convolution kernel [kh, kw, cin, cout] has
    rows=(kh, kw, cin), and runs as a convolution to r channels and a 1x1 convolution.
    """

    left: Float[Array, "*B m r"] | Any
    right: Float[Array, "*B r n"] | Any
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """The rank, i.e. the size of the inner dimension."""
        return self.right.shape[-2]

    def networks(self) -> tuple[Network, ...]:
        """One network, `m r, r n`, with m and n split and placed."""
        net = Network.parse("... m r, ... r n -> ... m n", self.left, self.right)
        *stack, rows, cols = net.dims
        if self.rows is not None:
            net, rows = net.split(rows[0], self.rows)
        if self.cols is not None:
            net, cols = net.split(cols[0], self.cols)
        trailing = (*rows, *cols)
        order = range(len(trailing)) if self.order is None else self.order
        return (net.with_dims([*stack, *((trailing[i],) for i in order)]),)

    @property
    def layout(self) -> Layout:
        """The dense dimensions that rows and cols stand for."""
        rows = 1 if self.rows is None else len(self.rows)
        cols = 1 if self.cols is None else len(self.cols)
        order = tuple(range(rows + cols)) if self.order is None else self.order
        stack = len(self.left.shape) - 2
        place = tuple(stack + order.index(i) for i in range(rows + cols))
        return Layout(place[:rows], place[rows:])

    def validate(self) -> Self:
        """Check the factors, and that rows, cols and order split and place their sizes."""
        super().validate()
        sides = (("rows", self.rows, -2, self.left), ("cols", self.cols, -1, self.right))
        for name, split, axis, factor in sides:
            if split is not None and math.prod(split) != factor.shape[axis]:
                got = f"{name}={split} for a factor of shape {tuple(factor.shape)}"
                todo = f"Split the size {factor.shape[axis]}."
                raise ShapeError(message(path="LowRank", got=got, expected="its size", todo=todo))
        trailing = sum(1 if split is None else len(split) for _, split, _, _ in sides)
        if self.order is not None and sorted(self.order) != list(range(trailing)):
            expected = f"a permutation of 0..{trailing - 1}"
            todo = "It places rows + cols."
            got = f"order={self.order}"
            raise ShapeError(message(path="LowRank", got=got, expected=expected, todo=todo))
        return self

    @classmethod
    def from_dense(cls, w: Float[Array, "*B m n"], rank: int) -> Self:
        """The best approximation of the given rank in the Frobenius norm, by an exact SVD.

        For data-aware, batched and fast solvers see `lrjax.decompose`.
        """
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        root = jnp.sqrt(s[..., :rank])
        return cls(u[..., :rank] * root[..., None, :], root[..., :, None] * vt[..., :rank, :])
