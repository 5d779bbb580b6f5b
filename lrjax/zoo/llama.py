"""The Llama family of decoders: Llama, Mistral, Qwen, Gemma, and their mixtures of experts.

Pre-norm blocks: x <- x + attention(norm(x)), x <- x + mlp(norm(x)); rotary positions, fewer key
heads than query heads, a gated MLP, root-mean-square norms (arXiv:2302.13971, arXiv:2307.09288).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import ShapeError, message
from lrjax.zoo import attention, names, rope, stack
from lrjax.zoo.config import one_of
from lrjax.zoo.layers import ACTIVATIONS, Dense, Embed, RMSNorm
from lrjax.zoo.llama_config import (
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from lrjax.zoo.moe import Experts, experts_layout
from lrjax.zoo.moe_config import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig
from lrjax.zoo.names import Tensor

FAMILY: Mapping[str, type[LlamaConfig]] = {
    kind.model_type: kind
    for kind in (
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        GemmaConfig,
        Gemma2Config,
        MixtralConfig,
        Qwen2MoeConfig,
        Qwen3MoeConfig,
    )
}
"""The configs by their published ``model_type``."""


class Llama(nn.Module):
    """Token ids -> the logits of the next token, at every place."""

    config: LlamaConfig
    scanned: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        position_ids: Int[Array, "#batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """The logits.

        ``attention_mask`` is 1 at real tokens, 0 at padding, on either side; ``position_ids`` are
        0, 1, 2, ... unless told. Both may be left out.
        """
        c, length = self.config, input_ids.shape[1]
        longest = length if position_ids is None else position_ids.max() + 1
        positions = jnp.arange(length)[None] if position_ids is None else position_ids
        turns = rope.rotations(c.rope, c.head_size, positions, longest)
        windows = [c.window(i) for i in range(c.num_hidden_layers)]
        kinds = list(dict.fromkeys(windows))
        masks = tuple(attention.causal(length, attention_mask, w) for w in kinds)

        embed = Embed(c.vocab_size, c.hidden_size, name="embed")
        x = embed(input_ids)
        if c.gemma:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        x = stack.run(
            lambda name, i: Block(c, c.sparse(i), name=name),
            x,
            masks,
            turns,
            each=[{"kind": kinds.index(w)} for w in windows],
            scanned=self._scanned(),
        )
        x = norm(c, "norm")(x)
        if c.tie_word_embeddings:
            logits = embed.attend(x)
        else:
            logits = Dense(c.vocab_size, use_bias=False, name="head")(x)
        cap = getattr(c, "final_logit_softcapping", None)
        return logits if cap is None else jnp.tanh(logits / cap) * cap

    @nn.nowrap
    def _scanned(self) -> bool:
        sparse = [self.config.sparse(i) for i in range(self.config.num_hidden_layers)]
        if self.scanned and len(set(sparse)) > 1:
            got = f"experts in {sum(sparse)} of {len(sparse)} layers"
            todo = "Leave the layers unrolled."
            raise ShapeError(message(got=got, expected="equal layers to scan", todo=todo))
        return self.scanned

    @property
    def architecture(self) -> str:
        """The name of this model's class in the reference library."""
        return self.config.architecture

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        return names.stacked(layout(self.config)) if self.scanned else layout(self.config)

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


class Block(nn.Module):
    """Attention, then an MLP or experts, each added to what went in; norms before (and after)."""

    config: LlamaConfig
    sparse: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        masks: tuple[Bool[Array, "#batch length length"], ...],
        turns: tuple[Array, Array],
        kind: int | Int[Array, ""] = 0,
    ) -> Float[Array, "batch length d"]:
        c = self.config
        after = (lambda name, y: norm(c, name)(y)) if c.sandwich else (lambda name, y: y)
        y = norm(c, "attention_norm")(x)
        y = Attention(c, name="attention")(y, attention.choose(masks, kind), turns)
        x = x + after("attention_post_norm", y)
        mlp = Experts(c, name="experts") if self.sparse else MLP(c, c.intermediate_size, name="mlp")
        return x + after("mlp_post_norm", mlp(norm(c, "mlp_norm")(x)))


class Attention(nn.Module):
    """Causal attention with rotated queries and keys, one key head for several query heads."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        visible: Bool[Array, "#batch length length"],
        turns: tuple[Array, Array],
    ) -> Float[Array, "batch length d"]:
        c = self.config
        inner, outer, _ = c.biases

        def heads(name: str, count: int) -> Array:
            y = Dense(count * c.head_size, inner, name=name)(x)
            return y.reshape(*x.shape[:-1], count, c.head_size)

        q, k = heads("query", c.num_attention_heads), heads("key", c.groups)
        if c.qk_norm:
            q, k = norm(c, "query_norm")(q), norm(c, "key_norm")(k)
        q, k, v = rope.rotate(q, *turns), rope.rotate(k, *turns), heads("value", c.groups)
        cap = getattr(c, "attn_logit_softcapping", None)
        mixed = attention.attend(q, k, v, visible, scale=c.scale, softcap=cap)
        return Dense(c.hidden_size, outer, name="output")(mixed)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), SwiGLU or GeGLU by its activation (arXiv:2002.05202)."""

    config: LlamaConfig
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        bias = self.config.biases[2]
        gate = ACTIVATIONS[self.config.act](Dense(self.width, bias, name="gate")(x))
        return Dense(x.shape[-1], bias, name="down")(gate * Dense(self.width, bias, name="up")(x))


def norm(c: LlamaConfig, name: str) -> RMSNorm:
    """The family's norm; Gemma stores its scale as the difference from one."""
    return RMSNorm(c.rms_norm_eps, 1.0 if c.gemma else 0.0, name=name)


def layout(c: LlamaConfig) -> Iterator[Tensor]:
    """The published checkpoint of the family, tensor by tensor."""
    tied = ("lm_head.weight",) if c.tie_word_embeddings else ()
    yield from names.embed("model.embed_tokens", "embed", copies=tied)
    for i in range(c.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        for kind in ("query", "key", "value", "output"):
            bias = c.biases[kind == "output"]
            name = f"{theirs}.self_attn.{kind[0]}_proj"
            yield from names.dense(name, f"{ours}/attention/{kind}", bias=bias)
        if c.qk_norm:
            for kind in ("query", "key"):
                name = f"{theirs}.self_attn.{kind[0]}_norm"
                yield from names.scale(name, f"{ours}/attention/{kind}_norm")
        yield from names.scale(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        if c.sandwich:
            after = f"{theirs}.post_attention_layernorm"
            yield from names.scale(after, f"{ours}/attention_post_norm")
            yield from names.scale(f"{theirs}.pre_feedforward_layernorm", f"{ours}/mlp_norm")
            yield from names.scale(f"{theirs}.post_feedforward_layernorm", f"{ours}/mlp_post_norm")
        else:
            yield from names.scale(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm")
        if c.sparse(i):
            yield from experts_layout(c, theirs, f"{ours}/experts")
        else:
            yield from names.gated(f"{theirs}.mlp", f"{ours}/mlp", bias=c.biases[2])
    yield from names.scale("model.norm", "norm")
    if not c.tie_word_embeddings:
        yield from names.dense("lm_head", "head", bias=False)


def read(config: Mapping[str, Any], tensors: Collection[str]) -> Llama:
    """The model that a published ``config.json`` describes.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    parsed = FAMILY[config["model_type"]].from_json(config)
    one_of("architectures", parsed.architectures, (None, [parsed.architecture]))
    return Llama(parsed)
