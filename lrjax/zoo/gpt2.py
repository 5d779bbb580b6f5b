"""GPT-2, the decoder with learned positions (Radford et al. 2019), as published.

Pre-norm blocks: x <- x + attention(norm(x)), x <- x + mlp(norm(x)). The published layout stores its
matrices ``[in, out]`` and query, key and value side by side in one; here they are three layers, so
that each may be factored in its own way.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import ShapeError, message
from lrjax.zoo import attention, names, stack
from lrjax.zoo.cache import Cache, KeyValues, empty, place, remember
from lrjax.zoo.config import one_of
from lrjax.zoo.gpt2_config import GPT2Config
from lrjax.zoo.latent import LatentAttention
from lrjax.zoo.layers import ACTIVATIONS, Dense, Embed, LayerNorm
from lrjax.zoo.names import Tensor


class GPT2(nn.Module):
    """Token ids -> the logits of the next token, at every place."""

    architecture: ClassVar[str] = "GPT2LMHeadModel"
    config: GPT2Config
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
        if length > c.n_positions:
            raise ShapeError(
                message(
                    path="input_ids",
                    got=f"{length} tokens",
                    expected=f"at most {c.n_positions}, the positions of this model",
                    todo="Cut or split the text.",
                )
            )
        tokens, after = place(input_ids, attention_mask, position_ids, cache)
        embed = Embed(c.vocab_size, c.n_embd, name="embed")
        x = embed(input_ids) + Embed(c.n_positions, c.n_embd, name="position")(tokens.new)
        x, parts = stack.read(
            lambda name, i: Block(c, i, name=name),
            x,
            cache and cache.parts,
            tokens.start,
            attention.causal(length, tokens.real, start=tokens.start),
            each=[{"scale": c.scale(i)} for i in range(c.n_layer)],
            scanned=self.scanned,
        )
        x = LayerNorm(c.layer_norm_epsilon, name="norm")(x[:, -1:] if last else x)
        if c.tie_word_embeddings:
            logits = embed.attend(x)
        else:
            logits = Dense(c.vocab_size, use_bias=False, name="head")(x)
        return logits if after is None else (logits, replace(after, parts=parts))

    @property
    def positions(self) -> int:
        """The number of tokens that a text may have."""
        return self.config.n_positions

    @nn.nowrap
    def cache(self, batch: int, capacity: int, dtype: Any = jnp.float32) -> Cache:
        """An empty cache of ``capacity`` tokens in each row."""
        layers = range(self.config.n_layer)
        parts = [attends(self.config, i).part(batch, capacity, dtype) for i in layers]
        return empty(parts, batch, capacity, scanned=self.scanned)

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        # The oldest files lack the prefix.
        own = names.also(layout(self.config), (r"^transformer\.", ""))
        return names.stacked(own) if self.scanned else own

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


class Block(nn.Module):
    """Attention, then an MLP, each normalised before and added to what went in."""

    config: GPT2Config
    layer: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        part: Any,
        start: int | Int[Array, ""],
        visible: Bool[Array, "#batch length slots"],
        scale: float | Float[Array, ""],
    ) -> tuple[Float[Array, "batch length d"], Any]:
        eps = self.config.layer_norm_epsilon
        y = LayerNorm(eps, name="attention_norm")(x)
        y, part = attends(self.config, self.layer, "attention")(
            y, part, start, visible, scale=scale
        )
        x = x + y
        mlp = MLP(self.config, self.layer, name="mlp")
        return x + mlp(LayerNorm(eps, name="mlp_norm")(x)), part


class Attention(nn.Module):
    """Causal attention, head by head."""

    config: GPT2Config
    layer: int = 0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length d"],
        part: KeyValues | None,
        start: int | Int[Array, ""],
        visible: Bool[Array, "#batch length slots"],
        scale: float | Float[Array, ""],
    ) -> tuple[Float[Array, "batch length d"], KeyValues | None]:
        q, k, v = (
            Dense(self.config.n_head * size, name=name)(x).reshape(*x.shape[:-1], -1, size)
            for name, size in self.config.head_sizes(self.layer).items()
        )
        k, v, part = remember(part, start, k, v)
        mixed = attention.attend(q, k, v, visible, scale=scale)
        return Dense(self.config.n_embd, name="output")(mixed), part

    @nn.nowrap
    def part(self, batch: int, capacity: int, dtype: Any) -> KeyValues:
        """What this layer keeps in an empty cache."""
        sizes = self.config.key_size(self.layer), self.config.value_size(self.layer)
        return KeyValues.empty((batch, self.config.n_head, capacity), *sizes, dtype)


def attends(c: GPT2Config, layer: int, name: str | None = None) -> Any:
    """The attention of a layer."""
    latent = c.latent_of(layer)
    if latent is None:
        return Attention(c, layer, name=name)
    sizes = c.key_size(layer), c.value_size(layer)
    return LatentAttention(latent, c.n_head, c.n_head, *sizes, c.n_embd, (True, True), name=name)


class MLP(nn.Module):
    """Two layers with a non-linearity between, four times as wide unless told."""

    config: GPT2Config
    layer: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d"]) -> Float[Array, "batch length d"]:
        c = self.config
        up = Dense(c.mlp_size(self.layer), name="up")(x)
        hidden = ACTIVATIONS[c.activation_function](up)
        return Dense(c.n_embd, name="down")(hidden)


def layout(c: GPT2Config) -> Iterator[Tensor]:
    """The published checkpoint, tensor by tensor."""
    tied = ("lm_head.weight",) if c.tie_word_embeddings else ()
    yield from names.embed("transformer.wte", "embed", copies=tied)
    yield from names.embed("transformer.wpe", "position")
    for i in range(c.n_layer):
        theirs, ours = f"transformer.h.{i}", f"layer_{i}"
        for k, kind in enumerate(("query", "key", "value")):
            fused, own = f"{theirs}.attn.c_attn", f"{ours}/attention/{kind}"
            yield Tensor(f"{fused}.weight", f"{own}/kernel", part=(1, k, 3))
            yield Tensor(f"{fused}.bias", f"{own}/bias", part=(0, k, 3))
        for name, own in (
            ("attn.c_proj", "attention/output"),
            ("mlp.c_fc", "mlp/up"),
            ("mlp.c_proj", "mlp/down"),
        ):
            yield Tensor(f"{theirs}.{name}.weight", f"{ours}/{own}/kernel")
            yield Tensor(f"{theirs}.{name}.bias", f"{ours}/{own}/bias")
        yield from names.norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
        yield from names.norm(f"{theirs}.ln_2", f"{ours}/mlp_norm")
    yield from names.norm("transformer.ln_f", "norm")
    if not c.tie_word_embeddings:
        yield from names.dense("lm_head", "head", bias=False)


def read(config: Mapping[str, Any], tensors: Collection[str]) -> GPT2:
    """The model that a published ``config.json`` describes.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    parsed = GPT2Config.from_json(config)
    one_of("architectures", parsed.architectures, (None, [GPT2.architecture]))
    return GPT2(parsed)
