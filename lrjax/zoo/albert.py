"""ALBERT (arXiv:1909.11942): BERT's blocks with one set of weights for many layers.

The word table is E wide, narrower than the blocks, and one matrix leads up. Layers of a group share
their weights: the tree holds one copy, which every layer of the group reads.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lrjax.zoo import attention, bert, heads, names
from lrjax.zoo.config import divides, one_of
from lrjax.zoo.layers import ACTIVATIONS, Dense
from lrjax.zoo.long import Exact
from lrjax.zoo.names import Tensor
from lrjax.zoo.sizes import LayerSizes


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(LayerSizes):
    """The shape of an ALBERT, in the words of its ``config.json``; the defaults are xxlarge."""

    model_type: ClassVar[str] = "albert"
    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 4096
    num_hidden_layers: int = 12
    num_hidden_groups: int = 1
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    inner_group_num: int = 1
    hidden_act: str = "gelu_new"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    position_embedding_type: str = "absolute"
    num_labels: int | None = None
    id2label: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuses what this encoder does not model."""
        super().check()
        one_of("position_embedding_type", self.position_embedding_type, ("absolute",))
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)

    @property
    def labels(self) -> int:
        """The number of classes of a classification head; two unless told."""
        return heads.labels(self.num_labels, self.id2label)


class Albert(nn.Module):
    """Token ids -> the last hidden states; :meth:`pool` gives the published pooled output.

    ``attention`` may be a cheaper kind for long texts: see :mod:`lrjax.zoo.long`.
    """

    architecture: ClassVar[str] = "AlbertModel"
    config: AlbertConfig
    pooled: bool = True
    attention: Any = Exact()

    def setup(self) -> None:
        c = self.config
        self.embeddings = bert.Embeddings(c)
        self.encoder = Encoder(c, self.attention)
        if self.pooled:
            self.pooler = Dense(c.hidden_size)

    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length d"]:
        """The last hidden states; the arguments are BERT's."""
        visible = attention.everywhere(attention_mask)
        x = self.encoder(self.embeddings(input_ids, token_type_ids), visible)
        if self.pooled and self.is_initializing():
            self.pool(x)
        return x

    def pool(self, hidden: Float[Array, "batch length d"]) -> Float[Array, "batch d"]:
        """tanh(W h_0 + b): what the sentence-order task read from the first token."""
        return jnp.tanh(self.pooler(hidden[:, 0]))

    def attend(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch vocab"]:
        """The scores of every word: the head that is tied to the embedding."""
        return self.embeddings.word.attend(x)

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        yield from bert.embeddings_layout()
        yield from names.dense("encoder.embedding_hidden_mapping_in", "encoder/up")
        for g in range(self.config.num_hidden_groups):
            for j in range(self.config.inner_group_num):
                theirs = f"encoder.albert_layer_groups.{g}.albert_layers.{j}"
                ours = f"encoder/group_{g}_{j}"
                for kind in ("query", "key", "value"):
                    yield from names.dense(f"{theirs}.attention.{kind}", f"{ours}/attention/{kind}")
                yield from names.dense(f"{theirs}.attention.dense", f"{ours}/attention/output")
                yield from names.norm(f"{theirs}.attention.LayerNorm", f"{ours}/attention_norm")
                yield from names.dense(f"{theirs}.ffn", f"{ours}/mlp/up")
                yield from names.dense(f"{theirs}.ffn_output", f"{ours}/mlp/down")
                yield from names.norm(f"{theirs}.full_layer_layer_norm", f"{ours}/mlp_norm")
        if self.pooled:
            yield from names.dense("pooler", "pooler")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


class Encoder(nn.Module):
    """One matrix up, then the blocks of every layer's group."""

    config: AlbertConfig
    attention: Any = Exact()

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length e"], visible: Bool[Array, "batch 1 length"] | None
    ) -> Float[Array, "batch length d"]:
        c = self.config
        groups = [
            [
                bert.Block(c, attention=self.attention, name=f"group_{g}_{j}")
                for j in range(c.inner_group_num)
            ]
            for g in range(c.num_hidden_groups)
        ]
        x = Dense(c.hidden_size, name="up")(x)
        for i in range(c.num_hidden_layers):
            for block in groups[int(i / (c.num_hidden_layers / c.num_hidden_groups))]:
                x = block(x, visible)
        return x


NAMES = heads.Names("albert", "predictions", "predictions", "sop_classifier.classifier")

HEADS: Mapping[str, type[heads.Head]] = {
    "AlbertForPreTraining": heads.MaskedLM,
    "AlbertForMaskedLM": heads.MaskedLM,
    "AlbertForSequenceClassification": heads.Classifier,
    "AlbertForTokenClassification": heads.TokenClassifier,
}
"""What stands on the encoder, by the published name of the whole."""


def read(config: Mapping[str, Any], tensors: Collection[str]) -> nn.Module:
    """The model that a published ``config.json`` and the names in its file describe.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    return heads.build(HEADS, Albert, NAMES, AlbertConfig.from_json(config), tensors)
