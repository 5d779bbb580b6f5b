"""The layers that the zoo's models are made of: ordinary Linen, whose weights may be factored.

A layer asks for its weight with ``self.param`` and hands it to :mod:`lrjax.ops`, which takes an
array or a factored array alike. :class:`FactorModule` is all that Linen needs to agree: it lets a
factored weight through where its *dense* shape is the declared one, and refuses it otherwise.
There are no dtype fields: a model computes in the dtype of its parameters.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Array, Float, Int

from lrjax import ops
from lrjax.errors import ShapeError, message
from lrjax.formats import is_factored


class FactorModule(nn.Module):
    """A Linen module whose parameters may be factored arrays.

    Linen checks the leaves of a stored parameter against the leaves of its initial value, which a
    factored array cannot pass: its leaves are factors. Here the dense shape is checked instead.

    Raises:
        ShapeError: a factored parameter stands for another shape than the module declares.
    """

    def param(self, name: str, init_fn: Any, *init_args: Any, **options: Any) -> Any:
        """Declares a parameter, as in Linen, or returns the factored one that is stored."""
        if self.scope is None or not self.scope.has_variable("params", name):
            return super().param(name, init_fn, *init_args, **options)
        stored = self.scope.get_variable("params", name)
        weight = meta.unbox(stored)
        if not is_factored(weight):
            return super().param(name, init_fn, *init_args, **options)
        declared = jax.eval_shape(lambda: meta.unbox(init_fn(jax.random.key(0), *init_args)))
        if weight.shape != declared.shape:
            raise ShapeError(
                message(
                    path="/".join((*self.scope.path, name)),
                    got=f"a {type(weight).__name__} of dense shape {weight.shape}",
                    expected=f"dense shape {declared.shape}",
                    todo="Factor the weight of this model, or build the model of this weight.",
                )
            )
        return super().param(name, lambda _: stored, **options)


class Dense(FactorModule):
    """y = x W + b, with W ``[in, out]`` under ``kernel`` and b under ``bias``."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = ops.einsum("...i,io->...o", x, kernel)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))


class Embed(FactorModule):
    """Rows of a table ``[count, features]``; :meth:`attend` is the head tied to the same table."""

    count: int
    features: int

    def setup(self) -> None:
        init = nn.initializers.normal(stddev=0.02)
        self.embedding = self.param("embedding", init, (self.count, self.features))

    def __call__(self, ids: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        return ops.take(self.embedding, ids, axis=0)

    def attend(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch count"]:
        """Scores of every row: x E'."""
        return ops.einsum("...d,vd->...v", x, self.embedding)


class Conv(FactorModule):
    """A convolution over height and width, channels last, its kernel ``[kh, kw, in, out]``."""

    features: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c_in"]) -> Float[Array, "batch h w c"]:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        padding = 2 * [(self.padding, self.padding)]
        order = ("NHWC", "HWIO", "NHWC")
        y = ops.conv_general_dilated(x, kernel, self.stride, padding, dimension_numbers=order)
        if not self.use_bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, (self.features,))


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias; the moments in float32 (arXiv:1607.06450)."""

    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        z = z - z.mean(-1, keepdims=True)
        z = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + self.epsilon)
        return z.astype(x.dtype) * scale + bias


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale; the moment in float32 (arXiv:1910.07467).

    With ``offset`` 1 the stored scale is the difference from one, and is applied in float32: Gemma.
    """

    epsilon: float = 1e-6
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        scale = self.param("scale", nn.initializers.constant(1 - self.offset), (x.shape[-1],))
        z = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        z = z * jax.lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + self.epsilon)
        if self.offset:
            return (z * (self.offset + scale.astype(z.dtype))).astype(x.dtype)
        return z.astype(x.dtype) * scale


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_python": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_accurate": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu_python_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu_10": lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}
"""The non-linearities by their published names."""
