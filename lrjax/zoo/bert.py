"""BERT, the bidirectional transformer encoder (arXiv:1810.04805), as published.

Post-norm blocks: x <- norm(x + attention(x)), x <- norm(x + mlp(x)). Query, key and value are three
layers, as in the published checkpoints, so that each may be factored in its own way.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import CheckpointError, ShapeError, message
from lrjax.zoo import names
from lrjax.zoo.config import Config
from lrjax.zoo.layers import Dense, Embed, LayerNorm
from lrjax.zoo.names import Tensor

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    """The shape of a BERT, in the words of its ``config.json``; the defaults are BERT-base."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


class Bert(nn.Module):
    """Token ids -> the last hidden states; :meth:`pool` gives the published pooled output."""

    config: BertConfig
    pooled: bool = True

    def setup(self) -> None:
        c = self.config
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c)
        if self.pooled:
            self.pooler = Dense(c.hidden_size)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length d"]:
        """The last hidden states.

        ``attention_mask`` is 1 at real tokens, 0 at padding; ``token_type_ids`` tells a first
        segment (0) from a second (1). Both may be left out: all real, all first.
        """
        visible = None if attention_mask is None else attention_mask[:, None, None, :] > 0
        x = self.encoder(self.embeddings(input_ids, token_type_ids), visible)
        if self.pooled and self.is_initializing():
            self.pool(x)
        return x

    def pool(self, hidden: Float[Array, "batch length d"]) -> Float[Array, "batch d"]:
        """tanh(W h_0 + b): what the next-sentence task read from the first token."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        for kind in ("word", "position", "token_type"):
            yield from names.embed(f"embeddings.{kind}_embeddings", f"embeddings/{kind}")
        yield from names.norm("embeddings.LayerNorm", "embeddings/norm")
        for i in range(self.config.num_hidden_layers):
            theirs, ours = f"encoder.layer.{i}", f"encoder/layer_{i}"
            for kind in ("query", "key", "value"):
                yield from names.dense(
                    f"{theirs}.attention.self.{kind}", f"{ours}/attention/{kind}"
                )
            yield from names.dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
            yield from names.norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
            yield from names.dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
            yield from names.dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
            yield from names.norm(f"{theirs}.output.LayerNorm", f"{ours}/mlp_norm")
        if self.pooled:
            yield from names.dense("pooler.dense", "pooler")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


class Embeddings(nn.Module):
    """The sum of a token's word, position and segment vectors, normalised."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"], types: Int[Array, "batch length"] | None
    ) -> Float[Array, "batch length d"]:
        c = self.config
        words = Embed(c.vocab_size, c.hidden_size, name="word")(ids)
        if ids.shape[-1] > c.max_position_embeddings:
            raise ShapeError(
                message(
                    path="input_ids",
                    got=f"{ids.shape[-1]} tokens",
                    expected=f"at most {c.max_position_embeddings}, the positions of this model",
                    todo="Cut or split the text.",
                )
            )
        positions = Embed(c.max_position_embeddings, c.hidden_size, name="position")
        segments = Embed(c.type_vocab_size, c.hidden_size, name="token_type")
        types = jnp.zeros_like(ids) if types is None else types
        x = words + segments(types) + positions(jnp.arange(ids.shape[-1]))
        return LayerNorm(c.layer_norm_eps, name="norm")(x)


class Encoder(nn.Module):
    """The blocks, one after the other."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        for i in range(self.config.num_hidden_layers):
            x = Block(self.config, name=f"layer_{i}")(x, visible)
        return x


class Block(nn.Module):
    """One transformer block, normalised after each residual sum."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        eps = self.config.layer_norm_eps
        attended = Attention(self.config, name="attention")(x, visible)
        x = LayerNorm(eps, name="attention_norm")(x + attended)
        return LayerNorm(eps, name="mlp_norm")(x + MLP(self.config, name="mlp")(x))


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d_head)) V over every visible token, head by head (arXiv:1706.03762)."""

    config: BertConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        d, heads = self.config.hidden_size, self.config.num_attention_heads
        q, k, v = (
            Dense(d, name=name)(x).reshape(*x.shape[:-1], heads, d // heads)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (d // heads) ** -0.5
        if visible is not None:
            scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)
        return Dense(d, name="output")(mixed.reshape(x.shape))


class MLP(nn.Module):
    """Two layers with a non-linearity between: down(act(up(x)))."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d"]) -> Float[Array, "batch length d"]:
        act = ACTIVATIONS[self.config.hidden_act]
        hidden = act(Dense(self.config.intermediate_size, name="up")(x))
        return Dense(self.config.hidden_size, name="down")(hidden)


def read(config: Mapping[str, Any], tensors: Collection[str]) -> Bert:
    """The model that a published ``config.json`` and the names in its file describe.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    for key, known in (
        ("architectures", (["BertModel"], None)),
        ("position_embedding_type", ("absolute",)),
        ("is_decoder", (False,)),
        ("add_cross_attention", (False,)),
        ("hidden_act", tuple(ACTIVATIONS)),
    ):
        if config.get(key, known[0]) not in known:
            raise CheckpointError(
                message(
                    path=f"config.json, {key}",
                    got=repr(config[key]),
                    expected=" or ".join(map(repr, known)),
                    todo="Load a plain BERT encoder.",
                )
            )
    parsed = BertConfig.from_json(config)
    if parsed.hidden_size % parsed.num_attention_heads:
        raise CheckpointError(
            message(
                path="config.json, num_attention_heads",
                got=str(parsed.num_attention_heads),
                expected=f"a divisor of hidden_size {parsed.hidden_size}",
                todo="Correct the value.",
            )
        )
    return Bert(parsed, pooled=any(name.startswith("pooler.") for name in tensors))
