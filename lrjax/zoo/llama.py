"""The Llama family of decoders: Llama, Mistral, Qwen, Gemma, and their mixtures of experts.

Pre-norm blocks: x <- x + attention(norm(x)), x <- x + mlp(norm(x)); rotary positions, fewer key
heads than query heads, a gated MLP, root-mean-square norms (arXiv:2302.13971, arXiv:2307.09288).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import ShapeError, message
from lrjax.zoo import attention, names, rope, stack
from lrjax.zoo.cache import Cache, KeyValues, empty, place, remember
from lrjax.zoo.config import one_of
from lrjax.zoo.latent import LatentAttention
from lrjax.zoo.layers import ACTIVATIONS, Dense, Embed, RMSNorm
from lrjax.zoo.llama_config import LlamaConfig
from lrjax.zoo.llama_family import FAMILY, layout
from lrjax.zoo.moe import Experts
from lrjax.zoo.names import Tensor


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
        cache: Cache | None = None,
        *,
        last: bool = False,
    ) -> Float[Array, "batch _ vocab"] | tuple[Float[Array, "batch _ vocab"], Cache]:
        """The logits; with ``cache``, given the tokens in it, and the cache with the new ones.

        ``attention_mask`` is 1 at real tokens, 0 at padding, on either side; ``position_ids`` are
        0, 1, 2, ... unless told, or go on from those in the cache. Both may be left out. With
        ``last``, there are the logits of the last place alone.
        """
        c, length = self.config, input_ids.shape[1]
        tokens, after = place(input_ids, attention_mask, position_ids, cache)
        longest = length if position_ids is None and cache is None else tokens.longest
        turns = rope.Turns(
            *(rope.rotations(c.rope, c.head_size, p, longest) for p in (tokens.new, tokens.slots))
        )
        windows = [c.window(i) for i in range(c.num_hidden_layers)]
        kinds = list(dict.fromkeys(windows))
        masks = tuple(attention.causal(length, tokens.real, w, start=tokens.start) for w in kinds)

        embed = Embed(c.vocab_size, c.hidden_size, name="embed")
        x = embed(input_ids)
        if c.gemma:
            x = x * jnp.asarray(c.hidden_size**0.5, x.dtype)
        x, parts = stack.read(
            lambda name, i: Block(c, i, name=name),
            x,
            cache and cache.parts,
            tokens.start,
            masks,
            turns,
            each=[{"kind": kinds.index(w)} for w in windows],
            scanned=self._scanned(),
        )
        x = norm(c, "norm")(x[:, -1:] if last else x)
        if c.tie_word_embeddings:
            logits = embed.attend(x)
        else:
            logits = Dense(c.vocab_size, use_bias=False, name="head")(x)
        cap = getattr(c, "final_logit_softcapping", None)
        logits = logits if cap is None else jnp.tanh(logits / cap) * cap
        return logits if after is None else (logits, replace(after, parts=parts))

    @property
    def positions(self) -> int:
        """The number of tokens that a text may have."""
        return self.config.max_position_embeddings

    @nn.nowrap
    def cache(self, batch: int, capacity: int, dtype: Any = jnp.float32) -> Cache:
        """An empty cache of ``capacity`` tokens in each row."""
        layers = range(self.config.num_hidden_layers)
        parts = [attends(self.config, i).part(batch, capacity, dtype) for i in layers]
        return empty(parts, batch, capacity, scanned=self._scanned())

    @nn.nowrap
    def _scanned(self) -> bool:
        if self.scanned and len(set(self.config.latent or ())) > 1:
            got, todo = "latents that differ from layer to layer", "Leave the layers unrolled."
            raise ShapeError(message(got=got, expected="equal layers to scan", todo=todo))
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
    layer: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        part: Any,
        start: int | Int[Array, ""],
        masks: tuple[Bool[Array, "#batch length slots"], ...],
        turns: rope.Turns,
        kind: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "batch length d"], Any]:
        c = self.config
        after = (lambda name, y: norm(c, name)(y)) if c.sandwich else (lambda name, y: y)
        y, visible = norm(c, "attention_norm")(x), attention.choose(masks, kind)
        y, part = attends(c, self.layer, name="attention")(y, part, start, visible, turns)
        x = x + after("attention_post_norm", y)
        sparse = c.sparse(self.layer)
        mlp = Experts(c, name="experts") if sparse else MLP(c, c.mlp_size(self.layer), name="mlp")
        return x + after("mlp_post_norm", mlp(norm(c, "mlp_norm")(x))), part


class Attention(nn.Module):
    """Causal attention with rotated queries and keys, one key head for several query heads."""

    config: LlamaConfig
    layer: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        part: KeyValues | None,
        start: int | Int[Array, ""],
        visible: Bool[Array, "#batch length slots"],
        turns: rope.Turns,
    ) -> tuple[Float[Array, "batch length d"], KeyValues | None]:
        c = self.config
        inner, outer, _ = c.biases

        def heads(name: str, count: int, size: int) -> Array:
            y = Dense(count * size, inner, name=name)(x)
            return y.reshape(*x.shape[:-1], count, size)

        count, size, pairs = c.num_attention_heads, c.key_size(self.layer), c.pairs(self.layer)
        q, k = heads("query", count, size), heads("key", c.groups, size)
        if c.qk_norm:
            q, k = norm(c, "query_norm")(q), norm(c, "key_norm")(k)
        late = rope.grows(c.rope)
        q = rope.rotate(q, *rope.by_heads(turns.new, pairs, count))
        v = heads("value", c.groups, c.value_size(self.layer))
        k = k if late else rope.rotate(k, *rope.by_heads(turns.new, pairs, c.groups))
        k, v, part = remember(part, start, k, v)
        k = rope.rotate(k, *rope.by_heads(turns.slots, pairs, c.groups)) if late else k
        cap = getattr(c, "attn_logit_softcapping", None)
        mixed = attention.attend(q, k, v, visible, scale=c.scale, softcap=cap)
        return Dense(c.hidden_size, outer, name="output")(mixed), part

    @nn.nowrap
    def part(self, batch: int, capacity: int, dtype: Any) -> KeyValues:
        """What this layer keeps in an empty cache."""
        c = self.config
        sizes = c.key_size(self.layer), c.value_size(self.layer)
        return KeyValues.empty((batch, c.groups, capacity), *sizes, dtype)


def attends(c: LlamaConfig, layer: int, name: str | None = None) -> Any:
    """The attention of a layer."""
    latent = c.latent_of(layer)
    if latent is None:
        return Attention(c, layer, name=name)
    return LatentAttention(
        latent,
        c.num_attention_heads,
        c.groups,
        c.key_size(layer),
        c.value_size(layer),
        c.hidden_size,
        c.biases[:2],
        scale=c.scale,
        softcap=getattr(c, "attn_logit_softcapping", None),
        norm=partial(norm, c) if c.qk_norm else None,
        late=rope.grows(c.rope),
        name=name,
    )


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


def read(config: Mapping[str, Any], tensors: Collection[str]) -> Llama:
    """The model that a published ``config.json`` describes.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    parsed = FAMILY[config["model_type"]].from_json(config)
    one_of("architectures", parsed.architectures, (None, [parsed.architecture]))
    return Llama(parsed)
