"""An attention module head by head: its kernels and biases, and what they see."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lrjax.decompose.attention import affine, affine_gram, inner, join_heads, split_heads
from lrjax.errors import RuleError, ShapeError, message
from lrjax.metrics import Kind, Metric, default_kind
from lrjax.restructure.structure import Module
from lrjax.zoo.latent_config import LatentSizes


@dataclasses.dataclass(frozen=True)
class Heads:
    """Kernels in float32, one matrix a head: query, key and value [heads, d, h], output [.., h, d].

    Attributes:
        module: the attention.
        config: its model's.
    """

    module: Module
    config: Any

    @property
    def layer(self) -> int:
        """The index of its layer."""
        return self.module.layer

    @property
    def count(self) -> int:
        """Query heads."""
        return self.config.query_heads

    @property
    def groups(self) -> int:
        """Key and value heads."""
        return self.config.kv_heads

    @property
    def rotated(self) -> bool:
        """Whether queries and keys are turned by their positions."""
        return self.config.rotated

    @property
    def normed(self) -> bool:
        """Whether queries and keys are normalised."""
        return "key_norm" in self.module.parts

    def of(self, kind: str) -> Array:
        """The kernels of query, key, value or output, head by head."""
        kernel = jnp.asarray(self.module.weights[f"{kind}/kernel"], jnp.float32)
        if kind == "output":
            return jnp.swapaxes(split_heads(kernel.T, self.count), -1, -2)
        return split_heads(kernel, self.count if kind == "query" else self.groups)

    def bias(self, kind: str) -> Array:
        """The bias of query, key or value by heads, [heads, h]; zeros where there is none."""
        kernels = self.of(kind)
        bias = self.module.weights.get(f"{kind}/bias")
        if bias is None:
            return jnp.zeros((len(kernels), kernels.shape[-1]))
        return jnp.asarray(bias, jnp.float32).reshape(len(kernels), -1)

    def has_bias(self, kind: str) -> bool:
        """Whether there is a bias."""
        return f"{kind}/bias" in self.module.weights

    def metric(self, kind: str, metric: Kind | None) -> tuple[Kind, Metric]:
        """What an error of a kernel means; about the mean of the inputs, for biases hold it."""
        path = f"{self.module.path}/{kind}/kernel"
        stats, shape = self.module.stats, self.module.weights[f"{kind}/kernel"].shape
        seen = None if stats is None else dataclasses.replace(stats.of(path), bias=path)
        found = default_kind(seen) if metric is None else metric
        return found, found.bind(seen, shape, path=path)

    def head_sides(self, cols: Array | None) -> Array | None:
        """The side of the outputs of keys or values, each head by itself, [groups, h, h]."""
        if cols is None:
            return None
        size = cols.shape[0] // self.groups
        if cols.ndim == 1:
            return cols.reshape(self.groups, 1, size) * jnp.eye(size)
        blocks = cols.reshape(self.groups, size, self.groups, size)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=0, axis2=2), -1, 0)

    def affine(self, kind: str) -> tuple[Array, Array | None]:
        """Kernels with the biases as a last row, if there are any, and the Gram of their inputs.

        Without statistics the Gram is None, the identity.
        """
        if self.module.stats is None:
            gram, mean = None, None
        else:
            moments = self.module.moments(f"{kind}/kernel")
            gram, mean = moments.second, moments.mean
        if not self.has_bias(kind):
            return self.of(kind), gram
        own = affine(self.of(kind), self.bias(kind))
        return own, None if gram is None else affine_gram(gram, mean)

    def outputs(self, kind: str) -> Array:
        """The second moment of what each head of a kind puts out, [heads, h, h]."""
        return inner(*self.affine(kind))

    def grouped(self, x: Array) -> Array:
        """What is by query heads, by key heads first, [groups, heads / groups, ...]."""
        return x.reshape(self.groups, self.count // self.groups, *x.shape[1:])

    def replace(self, kind: str, kernels: Array, biases: Array | None = None) -> dict[str, Array]:
        """The leaves of a kind with new heads; a bias where the old one has it."""
        if kind == "output":
            return {"output/kernel": join_heads(jnp.swapaxes(kernels, -1, -2)).T}
        leaves = {f"{kind}/kernel": join_heads(kernels)}
        if self.has_bias(kind):
            assert biases is not None
            leaves[f"{kind}/bias"] = biases.reshape(-1)
        return leaves

    def replace_affine(self, kind: str, kernels: Array) -> dict[str, Array]:
        """Likewise, of kernels whose last row is the bias where the old ones have one."""
        if not self.has_bias(kind):
            return self.replace(kind, kernels)
        return self.replace(kind, kernels[..., :-1, :], kernels[..., -1, :])


def heads_of(config: Any, module: Module, what: str) -> Heads:
    """The view of an attention of a decoder.

    Raises:
        RuleError: the model is no decoder of the zoo, or its attention is latent already.
        ShapeError: the heads have been cut to another size, and are rotated.
    """
    got = expected = None
    if not isinstance(config, LatentSizes):
        got, expected = f"a {type(config).__name__}", "the config of a Llama or a GPT-2"
    elif config.latent_of(module.layer) is not None:
        got, expected = "latent attention", "attention that is not latent yet"
    if got is not None:
        todo = f"Restructure a decoder as published by {what}."
        raise RuleError(message(path=module.path, got=got, expected=expected, todo=todo))
    view = Heads(module, config)
    size = view.of("key").shape[-1]
    if view.rotated and size != config.head_size:
        got, expected = (
            f"heads cut to {size} of {config.head_size}",
            "all pairs of the rotated keys",
        )
        todo = f"Apply {what} first."
        raise ShapeError(message(path=module.path, got=got, expected=expected, todo=todo))
    return view
