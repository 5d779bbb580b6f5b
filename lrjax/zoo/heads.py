"""What BERT and ALBERT put on top: masked words, a class per text, a class per token.

The encoder below is the one of ``body``, which gives hidden states, a pooled first token and the
scores of the words by its own table.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrjax.zoo import names as maps
from lrjax.zoo.config import one_of
from lrjax.zoo.layers import ACTIVATIONS, Dense, LayerNorm
from lrjax.zoo.names import Tensor


@dataclass(frozen=True)
class Names:
    """Published names: of the encoder, the word head's transform, the word head, the pair head."""

    body: str
    transform: str
    words: str
    pairs: str


class Head(nn.Module):
    """What the heads share: an encoder of type ``body``, under its published name."""

    config: Any
    body: Callable[..., Any]
    names: Names
    architecture: str
    pooled: bool = False
    paired: bool = False
    scanned: bool = False

    @nn.nowrap
    def encoder(self) -> Any:
        """The encoder; its parameters stand under its published name."""
        return self.body(self.config, self.pooled, **self._form(), name=self.names.body)

    @nn.nowrap
    def _form(self) -> dict[str, bool]:
        # Shared layers have no scanned form.
        return {"scanned": True} if self.scanned else {}

    @nn.nowrap
    def extras(self, encoder: Any, hidden: Float[Array, "batch length d"]) -> None:
        """Declares the pooler and the head of sentence pairs, where the checkpoint holds them."""
        if self.is_initializing() and self.pooled:
            pooled = encoder.pool(hidden)
            if self.paired:
                Dense(2, name="pairs")(pooled)

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        body = self.body(self.config, self.pooled, **self._form())
        yield from maps.under(body.layout(), f"{self.names.body}.", f"{self.names.body}/")
        if self.paired:
            yield from maps.dense(self.names.pairs, "pairs")
        yield from self.own()

    @nn.nowrap
    def own(self) -> Iterator[Tensor]:
        """The published tensors of the head."""
        return maps.dense("classifier", "classifier")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, 1), jnp.int32),)


class MaskedLM(Head):
    """Token ids -> scores of every word at every place: E norm(act(W h)) + b."""

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length vocab"]:
        """The logits of the words."""
        c, encoder = self.config, self.encoder()
        hidden = encoder(input_ids, attention_mask, token_type_ids)
        self.extras(encoder, hidden)
        x = Dense(c.embedding_size, name="transform")(hidden)
        x = LayerNorm(c.layer_norm_eps, name="norm")(ACTIVATIONS[c.hidden_act](x))
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        if c.tie_word_embeddings:
            return encoder.attend(x) + bias
        # An untied head has a bias of its own; the published file carries the other one, unused.
        return Dense(c.vocab_size, name="decoder")(x)

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        tied = (f"{self.names.words}.decoder.weight",) if self.config.tie_word_embeddings else ()
        for t in super().layout():
            yield replace(t, copies=tied) if t.path.endswith("embeddings/word/embedding") else t

    @nn.nowrap
    def own(self) -> Iterator[Tensor]:
        """The published tensors of the head."""
        words, tied = self.names.words, self.config.tie_word_embeddings
        yield from maps.dense(f"{self.names.transform}.dense", "transform")
        yield from maps.norm(f"{self.names.transform}.LayerNorm", "norm")
        yield Tensor(f"{words}.bias", "bias", copies=(f"{words}.decoder.bias",) if tied else ())
        if not tied:
            yield from maps.dense(f"{words}.decoder", "decoder")


class Classifier(Head):
    """Token ids -> scores of the classes of a text, from its pooled first token."""

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch labels"]:
        """The logits of the classes."""
        encoder = self.encoder()
        hidden = encoder(input_ids, attention_mask, token_type_ids)
        return Dense(self.config.labels, name="classifier")(encoder.pool(hidden))


class TokenClassifier(Head):
    """Token ids -> scores of the classes of every token."""

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "batch length"],
        attention_mask: Int[Array, "batch length"] | None = None,
        token_type_ids: Int[Array, "batch length"] | None = None,
    ) -> Float[Array, "batch length labels"]:
        """The logits of the classes, token by token."""
        encoder = self.encoder()
        hidden = encoder(input_ids, attention_mask, token_type_ids)
        self.extras(encoder, hidden)
        return Dense(self.config.labels, name="classifier")(hidden)


def build(
    known: Mapping[str, type[Head]],
    body: Any,
    names: Names,
    parsed: Any,
    tensors: Collection[str],
) -> Any:
    """The encoder, or what stands on it in the architecture that the config names.

    Raises:
        CheckpointError: it names another one.
    """
    named = parsed.architectures or [body.architecture]
    one_of("architectures", named, ([name] for name in (body.architecture, *known)))
    parts = {part for name in tensors for part in name.split(".")}
    pooled = "pooler" in parts
    if named[0] not in known:
        return body(parsed, pooled=pooled)
    paired = not parts.isdisjoint(("seq_relationship", "sop_classifier", "pairs"))
    pooled = pooled or paired or known[named[0]] is Classifier
    return known[named[0]](parsed, body, names, named[0], pooled=pooled, paired=paired)


def labels(count: int | None, by_id: Mapping[str, str] | None) -> int:
    """The number of classes: as many as have names, else the count, else two."""
    return len(by_id) if by_id is not None else 2 if count is None else count
