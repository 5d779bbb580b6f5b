"""Mixtures of experts: every token visits the few experts that a router picks (arXiv:2401.04088).

The kernels of all experts are one stack ``[experts, in, out]``, so that they are factored in one
batched solve, each expert by the tokens that it sees. ``SharedBasis()`` gives them one basis of
their inputs, outputs or both, and each a core (as MoBE, arXiv:2508.05257, but linear): where
experts lie near common bases it loses less at equal bytes, and one product with a basis serves all.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax import ops
from lrjax.zoo import names
from lrjax.zoo.layers import ACTIVATIONS, Dense, FactorModule
from lrjax.zoo.names import Tensor


class Experts(nn.Module):
    """sum_e p_e(x) down_e(act(gate_e(x)) * up_e(x)) over the experts e of the largest p.

    p is the router's softmax, in float32; it is scaled to sum one over the chosen experts where the
    config says so. With ``shared``, one more expert serves all tokens, scaled by a gate.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d"]) -> Float[Array, "batch length d"]:
        c, d = self.config, x.shape[-1]
        tokens = x.reshape(-1, d)
        weights = self._route(tokens)
        # A token is zero to the experts that it does not visit: what calibration sees is routed.
        visits = jnp.where(weights.T[..., None] > 0, tokens, 0)
        act = ACTIVATIONS[c.act]
        hidden = act(Stack(c.expert_size, name="gate")(visits))
        out = Stack(d, name="down")(hidden * Stack(c.expert_size, name="up")(visits))
        y = jnp.einsum("te,etd->td", weights.astype(out.dtype), out)
        if c.shared:
            width = c.shared_expert_intermediate_size
            hidden = act(Dense(width, use_bias=False, name="shared_gate")(tokens))
            hidden = hidden * Dense(width, use_bias=False, name="shared_up")(tokens)
            share = Dense(1, use_bias=False, name="shared_router")(tokens)
            y = y + jax.nn.sigmoid(share) * Dense(d, use_bias=False, name="shared_down")(hidden)
        return y.reshape(x.shape)

    @nn.nowrap
    def _route(self, tokens: Float[Array, "tokens d"]) -> Float[Array, "tokens experts"]:
        """The weight of every expert for every token; zero where the token does not go."""
        c = self.config
        scores = Dense(c.experts, use_bias=False, name="router")(tokens)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        top, chosen = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), c.num_experts_per_tok)
        if c.normalised:
            top = top / top.sum(-1, keepdims=True)
        return jnp.einsum("tk,tke->te", top, jax.nn.one_hot(chosen, c.experts, dtype=top.dtype))


class Stack(FactorModule):
    """y_e = x_e W_e, with W ``[experts, in, out]`` under ``kernel``."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "experts tokens d"]) -> Float[Array, "experts tokens f"]:
        shape = (x.shape[0], x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(batch_axis=0), shape)
        return ops.einsum("etd,edf->etf", x, kernel)


def experts_layout(c: Any, theirs: str, ours: str) -> Iterator[Tensor]:
    """The published experts of one layer: Mixtral's names, or Qwen's."""
    mixtral = c.model_type == "mixtral"
    block = f"{theirs}.block_sparse_moe" if mixtral else f"{theirs}.mlp"
    own = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    yield from names.dense(f"{block}.gate", f"{ours}/router", bias=False)
    for e in range(c.experts):
        for kind, name in zip(("gate", "up", "down"), own, strict=True):
            path = f"{ours}/{kind}/kernel"
            yield Tensor(f"{block}.experts.{e}.{name}.weight", path, axes=(1, 0), at=(e,))
    if c.shared:
        yield from names.gated(f"{block}.shared_expert", f"{ours}/shared", bias=False, join="_")
        yield from names.dense(f"{block}.shared_expert_gate", f"{ours}/shared_router", bias=False)
