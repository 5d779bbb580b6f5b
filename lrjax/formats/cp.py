"""W = sum of rank-one tensors (canonical polyadic form), for convolutions and stacked kernels."""

import dataclasses
import math
from typing import Any, Self

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.formats.factored import Factored, register
from lrjax.formats.layout import Layout, default_layout
from lrjax.formats.modes import arrange, check_sizes, layout_of, regrouping
from lrjax.formats.network import Network


@register(meta=("rows", "cols", "order"))
@dataclasses.dataclass(frozen=True)
class CP(Factored):
    """A sum of rank-one tensors, W[d_0, d_1, ...] = sum_r scale[r] prod_k factors[k][d_k, r].

    - `scale` is [*B, r] and `factors[k]` is [*B, d_k, r]; leading axes B are stack axes.
    - `rows` and `cols` regroup the modes into dense dimensions; None, both, keeps the modes.
    - `order` permutes rows + cols into the trailing dimensions of W, as in `LowRank`.

    A convolution kernel [kh, kw, cin, cout] of four modes runs as 1x1, kh x 1 and 1 x kw
    depthwise, 1x1; of the three modes kh kw, cin, cout with rows=(kh, kw, cin), cols=(cout,) as
    1x1, kh x kw depthwise, 1x1.
    """

    scale: Float[Array, "*B r"] | Any
    factors: tuple[Float[Array, "*B _ r"] | Any, ...]
    rows: tuple[int, ...] | None = None
    cols: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        """The number of rank-one terms."""
        return self.scale.shape[-1]

    def networks(self) -> tuple[Network, ...]:
        """One network, with the terms as its inner label."""
        names = [f"d{k}" for k in range(len(self.factors))]
        terms = ", ".join(f"... {name} r" for name in names)
        pattern = f"... r, {terms} -> ... {' '.join(names)}"
        net = Network.parse(pattern, self.scale, *self.factors)
        return (arrange(net, len(self.scale.shape) - 1, self.rows, self.cols, self.order),)

    @property
    def layout(self) -> Layout:
        """Rows and columns as given, else the most balanced cut."""
        if self.rows is None or self.cols is None:
            return default_layout(self.shape)
        stack = len(self.scale.shape) - 1
        return layout_of(stack, len(self.rows), len(self.cols), self.order)

    @property
    def intensity(self) -> Float[Array, "*B"]:
        """Norm of all terms over the norm of their sum, sqrt(sum_r |term_r|^2) / |W|.

        One for orthogonal terms, and large where diverging terms cancel: such a fit is
        ill-conditioned (Phan et al., arXiv:2008.05441). Rounding hides sums below 3e-4 of their
        terms, so 2896 stands for itself and all above. Zero where all terms are.
        """
        factors = [f.astype(jnp.float32) for f in self.factors]
        grams = [jnp.einsum("...dr,...dq->...rq", f, f, precision="highest") for f in factors]
        scale = self.scale.astype(jnp.float32)
        peak = jnp.max(jnp.abs(scale), axis=-1, keepdims=True)
        scale = scale / jnp.where(peak > 0, peak, 1)
        inner = scale[..., :, None] * scale[..., None, :] * math.prod(grams)
        total = jnp.sum(inner, axis=(-2, -1))
        terms = jnp.trace(inner, axis1=-2, axis2=-1)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).eps * terms)
        return jnp.where(terms > 0, jnp.sqrt(terms / jnp.where(terms > 0, total, 1)), 0.0)

    def validate(self) -> Self:
        """Check that the factors fit together and to rows, cols and order."""
        size = math.prod(f.shape[-2] for f in self.factors)
        check_sizes("CP", self.rows, self.cols, self.order, size)
        with regrouping(self, "mode"):
            return super().validate()
