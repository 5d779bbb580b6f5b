"""BERT, the bidirectional transformer encoder (arXiv:1810.04805), as published.

Post-norm blocks: x <- norm(x + attention(x)), x <- norm(x + mlp(x)). Query, key and value are three
layers, as in the published checkpoints, so that each may be factored in its own way. What is put on
top of it stands in ``heads.py``.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.errors import ShapeError, message
from lrjax.zoo import attention, heads, names, stack
from lrjax.zoo.config import divides, one_of
from lrjax.zoo.layers import ACTIVATIONS, Dense, Embed, LayerNorm
from lrjax.zoo.long import Exact
from lrjax.zoo.names import Tensor
from lrjax.zoo.sizes import LayerSizes


@dataclass(frozen=True, kw_only=True)
class BertConfig(LayerSizes):
    """The shape of a BERT, in the words of its ``config.json``; the defaults are BERT-base."""

    model_type: ClassVar[str] = "bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    position_embedding_type: str = "absolute"
    is_decoder: bool = False
    add_cross_attention: bool = False
    num_labels: int | None = None
    id2label: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuses what these encoders do not model."""
        super().check()
        one_of("position_embedding_type", self.position_embedding_type, ("absolute",))
        one_of("is_decoder", self.is_decoder, (False,))
        one_of("add_cross_attention", self.add_cross_attention, (False,))
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)

    @property
    def labels(self) -> int:
        """The number of classes of a classification head; two unless told."""
        return heads.labels(self.num_labels, self.id2label)

    @property
    def embedding_size(self) -> int:
        """The width of the tables: that of the blocks."""
        return self.hidden_size


class Bert(nn.Module):
    """Token ids -> the last hidden states; :meth:`pool` gives the published pooled output.

    ``attention`` may be a cheaper kind for long texts: see :mod:`lrjax.zoo.long`.
    """

    architecture: ClassVar[str] = "BertModel"
    config: BertConfig
    pooled: bool = True
    scanned: bool = False
    attention: Any = Exact()

    def setup(self) -> None:
        c = self.config
        self.embeddings = Embeddings(c)
        self.encoder = Encoder(c, self.scanned, self.attention)
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
        visible = attention.everywhere(attention_mask)
        x = self.encoder(self.embeddings(input_ids, token_type_ids), visible)
        if self.pooled and self.is_initializing():
            self.pool(x)
        return x

    def pool(self, hidden: Float[Array, "batch length d"]) -> Float[Array, "batch d"]:
        """tanh(W h_0 + b): what the next-sentence task read from the first token."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def attend(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """The scores of every word: the head that is tied to the embedding."""
        return self.embeddings.word.attend(x)

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        layout = self._layout()
        return names.stacked(layout) if self.scanned else layout

    def _layout(self) -> Iterator[Tensor]:
        yield from embeddings_layout()
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

    config: Any

    def setup(self) -> None:
        c = self.config
        self.word = Embed(c.vocab_size, c.embedding_size)
        self.position = Embed(c.max_position_embeddings, c.embedding_size)
        self.token_type = Embed(c.type_vocab_size, c.embedding_size)
        self.norm = LayerNorm(c.layer_norm_eps)

    def __call__(
        self, ids: Int[Array, "batch length"], types: Int[Array, "batch length"] | None
    ) -> Float[Array, "batch length d"]:
        limit = self.config.max_position_embeddings
        if ids.shape[-1] > limit:
            raise ShapeError(
                message(
                    path="input_ids",
                    got=f"{ids.shape[-1]} tokens",
                    expected=f"at most {limit}, the positions of this model",
                    todo="Cut or split the text.",
                )
            )
        types = jnp.zeros_like(ids) if types is None else types
        places = self.position(jnp.arange(ids.shape[-1]))
        return self.norm(self.word(ids) + self.token_type(types) + places)


class Encoder(nn.Module):
    """The blocks, one after the other."""

    config: BertConfig
    scanned: bool = False
    attention: Any = Exact()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        c = self.config
        each = [{}] * c.num_hidden_layers
        block = lambda name, i: Block(c, i, self.attention, name=name)
        return stack.run(block, x, visible, each=each, scanned=self.scanned)


class Block(nn.Module):
    """One transformer block, normalised after each residual sum."""

    config: Any
    layer: int = 0
    attention: Any = Exact()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        eps = self.config.layer_norm_eps
        attended = Attention(self.config, self.attention, self.layer, name="attention")(x, visible)
        x = LayerNorm(eps, name="attention_norm")(x + attended)
        mlp = MLP(self.config, self.layer, name="mlp")
        return LayerNorm(eps, name="mlp_norm")(x + mlp(x))


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d_head)) V over every visible token, head by head (arXiv:1706.03762)."""

    config: Any
    kind: Any = Exact()
    layer: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length d"], visible: Bool[Array, "batch 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        c = self.config
        q, k, v = (
            Dense(c.query_heads * size, name=name)(x).reshape(*x.shape[:-1], -1, size)
            for name, size in c.head_sizes(self.layer).items()
        )
        mixed = self.kind.mix(self, q, k, v, visible, scale=c.head_size**-0.5)
        return Dense(c.hidden_size, name="output")(mixed)


class MLP(nn.Module):
    """Two layers with a non-linearity between: down(act(up(x)))."""

    config: Any
    layer: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch length d"]) -> Float[Array, "batch length d"]:
        act = ACTIVATIONS[self.config.hidden_act]
        hidden = act(Dense(self.config.mlp_size(self.layer), name="up")(x))
        return Dense(self.config.hidden_size, name="down")(hidden)


def embeddings_layout() -> Iterator[Tensor]:
    """The published tables and their norm, which ALBERT shares."""
    for kind in ("word", "position", "token_type"):
        yield from names.embed(f"embeddings.{kind}_embeddings", f"embeddings/{kind}")
    yield from names.norm("embeddings.LayerNorm", "embeddings/norm")


NAMES = heads.Names("bert", "cls.predictions.transform", "cls.predictions", "cls.seq_relationship")

HEADS: Mapping[str, type[heads.Head]] = {
    "BertForPreTraining": heads.MaskedLM,
    "BertForMaskedLM": heads.MaskedLM,
    "BertForSequenceClassification": heads.Classifier,
    "BertForTokenClassification": heads.TokenClassifier,
}
"""What stands on the encoder, by the published name of the whole."""


def read(config: Mapping[str, Any], tensors: Collection[str]) -> nn.Module:
    """The model that a published ``config.json`` and the names in its file describe.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    return heads.build(HEADS, Bert, NAMES, BertConfig.from_json(config), tensors)
