"""ViT, a transformer over patches (arXiv:2010.11929), and DeiT, its distilled kin (2012.12877).

Pre-norm blocks: x <- x + attention(norm(x)), x <- x + mlp(norm(x)). A class token goes before the
patches, and in DeiT a distillation token behind it. Images are
``[batch, channels, height, width]``, as the reference library takes them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrjax.errors import ShapeError, message
from lrjax.zoo import attention, bert, heads, names, stack
from lrjax.zoo.config import divides, one_of, refuse
from lrjax.zoo.layers import ACTIVATIONS, Conv, Dense, LayerNorm
from lrjax.zoo.names import Tensor
from lrjax.zoo.sizes import LayerSizes


@dataclass(frozen=True, kw_only=True)
class ViTConfig(LayerSizes):
    """The shape of a ViT, in the words of its ``config.json``; the defaults are ViT-base."""

    model_type: ClassVar[str] = "vit"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    num_labels: int | None = None
    id2label: Mapping[str, Any] | None = None

    def check(self) -> None:
        """Refuses what this model does not know."""
        super().check()
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        one_of("pooler_act", self.pooler_act, ACTIVATIONS)
        divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        for key in ("image_size", "patch_size"):
            if len(pair(getattr(self, key))) != 2:
                refuse(key, getattr(self, key), "a size, or height and width")

    @property
    def labels(self) -> int:
        """The number of classes; two unless told."""
        return heads.labels(self.num_labels, self.id2label)

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        (height, width), (h, w) = pair(self.image_size), pair(self.patch_size)
        return (height // h) * (width // w)


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(ViTConfig):
    """The shape of a DeiT: the same words."""

    model_type: ClassVar[str] = "deit"


class ViT(nn.Module):
    """Images -> the last hidden states, or the logits of the classes if there is a classifier.

    ``tops`` names the classifiers: the k-th reads the k-th token, and their logits are averaged.
    """

    config: ViTConfig
    tops: tuple[str, ...] = ()
    pooled: bool = False
    scanned: bool = False

    def setup(self) -> None:
        c, zeros = self.config, nn.initializers.zeros
        self.patches = Conv(c.hidden_size, pair(c.patch_size), pair(c.patch_size))
        self.tokens = [self.param(name, zeros, (1, 1, c.hidden_size)) for name in self.extra]
        shape = (1, len(self.extra) + c.patches, c.hidden_size)
        self.position = self.param("position", nn.initializers.normal(0.02), shape)
        self.encoder = Encoder(c, self.scanned)
        self.norm = LayerNorm(c.layer_norm_eps)
        self.classifiers = [Dense(c.labels, name=name) for name in self.tops]
        if self.pooled:
            self.pooler = Dense(c.pooler_output_size or c.hidden_size)

    def __call__(
        self, pixel_values: Float[Array, "batch channels height width"]
    ) -> Float[Array, "batch *out"]:
        """The last hidden states ``[batch, tokens, d]``, or the logits ``[batch, labels]``."""
        c = self.config
        if pixel_values.shape[1:] != (c.num_channels, *pair(c.image_size)):
            raise ShapeError(
                message(
                    path="pixel_values",
                    got=f"shape {pixel_values.shape}",
                    expected=f"[batch, {c.num_channels}, *{pair(c.image_size)}]",
                    todo="Resize the images; channels come first.",
                )
            )
        images = pixel_values.transpose(0, 2, 3, 1).astype(self.position.dtype)
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in self.tokens]
        x = self.norm(self.encoder(jnp.concatenate([*first, x], axis=1) + self.position))
        if self.pooled and self.is_initializing():
            self.pool(x)
        if not self.tops:
            return x
        logits = [top(x[:, k]) for k, top in enumerate(self.classifiers)]
        return jnp.stack(logits).mean(0)

    def pool(self, hidden: Float[Array, "batch tokens d"]) -> Float[Array, "batch d_pool"]:
        """act(W h_0 + b)."""
        return ACTIVATIONS[self.config.pooler_act](self.pooler(hidden[:, 0]))

    @property
    def extra(self) -> tuple[str, ...]:
        """The tokens before the patches."""
        distilled = self.config.model_type == "deit"
        return ("cls_token", "distillation_token") if distilled else ("cls_token",)

    @property
    def architecture(self) -> str:
        """The name of this model's class in the reference library."""
        return next(a for a, (kind, tops) in TOPS.items() if (kind, tops) == self._kind())

    @nn.nowrap
    def _kind(self) -> tuple[str, tuple[str, ...]]:
        return self.config.model_type, self.tops

    @nn.nowrap
    def layout(self) -> Iterator[Tensor]:
        """The published checkpoint, tensor by tensor."""
        layout = self._body()
        if self.tops:
            layout = names.under(layout, f"{self.config.model_type}.", "")
        # The reference library's own names of today are read, too.
        layout = names.also(layout, *TODAY)
        yield from names.stacked(layout) if self.scanned else layout
        for top in self.tops:
            yield from names.dense(top, top)

    @nn.nowrap
    def _body(self) -> Iterator[Tensor]:
        for token in self.extra:
            yield Tensor(f"embeddings.{token}", token)
        yield Tensor("embeddings.position_embeddings", "position")
        yield from names.conv("embeddings.patch_embeddings.projection", "patches")
        for i in range(self.config.num_hidden_layers):
            theirs, ours = f"encoder.layer.{i}", f"encoder/layer_{i}"
            for kind in ("query", "key", "value"):
                name, own = f"{theirs}.attention.attention.{kind}", f"{ours}/attention/{kind}"
                yield from names.dense(name, own, bias=self.config.qkv_bias)
            yield from names.dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
            yield from names.dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
            yield from names.dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
            yield from names.norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
            yield from names.norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm")
        yield from names.norm("layernorm", "norm")
        if self.pooled:
            yield from names.dense("pooler.dense", "pooler")

    @nn.nowrap
    def example(self) -> tuple[Any, ...]:
        """Inputs of the least size, from which the parameters' shapes follow."""
        return (jnp.zeros((1, self.config.num_channels, *pair(self.config.image_size))),)


class Encoder(nn.Module):
    """The blocks, one after the other."""

    config: ViTConfig
    scanned: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens d"]) -> Float[Array, "batch tokens d"]:
        block = lambda name, i: Block(self.config, i, name=name)
        each = [{}] * self.config.num_hidden_layers
        return stack.run(block, x, each=each, scanned=self.scanned)


class Block(nn.Module):
    """Attention over all tokens, then an MLP, each normalised before and added to what went in."""

    config: ViTConfig
    layer: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens d"]) -> Float[Array, "batch tokens d"]:
        c = self.config
        y = LayerNorm(c.layer_norm_eps, name="attention_norm")(x)
        x = x + Attention(c, self.layer, name="attention")(y)
        mlp = bert.MLP(c, self.layer, name="mlp")
        return x + mlp(LayerNorm(c.layer_norm_eps, name="mlp_norm")(x))


class Attention(nn.Module):
    """softmax(Q K' / sqrt(d_head)) V over all tokens, head by head."""

    config: ViTConfig
    layer: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens d"]) -> Float[Array, "batch tokens d"]:
        c = self.config
        q, k, v = (
            Dense(c.query_heads * size, c.qkv_bias, name=name)(x).reshape(*x.shape[:-1], -1, size)
            for name, size in c.head_sizes(self.layer).items()
        )
        mixed = attention.attend(q, k, v, None, scale=c.head_size**-0.5)
        return Dense(c.hidden_size, name="output")(mixed)


def pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size  # pyright: ignore[reportReturnType]


TODAY = (
    (r"\bencoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(.)\w+", r".attention.\1_proj"),
    (r"\.attention\.output\.dense", ".attention.o_proj"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)

TOPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ViTModel": ("vit", ()),
    "ViTForImageClassification": ("vit", ("classifier",)),
    "DeiTModel": ("deit", ()),
    "DeiTForImageClassification": ("deit", ("classifier",)),
    "DeiTForImageClassificationWithTeacher": (
        "deit",
        ("cls_classifier", "distillation_classifier"),
    ),
}
"""The classifiers of each published architecture."""


def read(config: Mapping[str, Any], tensors: Collection[str]) -> ViT:
    """The model that a published ``config.json`` and the names in its file describe.

    Raises:
        CheckpointError: the config asks for what this file does not model.
    """
    kind = ViTConfig if config["model_type"] == "vit" else DeiTConfig
    parsed = kind.from_json(config)
    known = [name for name, (own, _) in TOPS.items() if own == parsed.model_type]
    named = parsed.architectures or known[:1]
    one_of("architectures", named, ([name] for name in known))
    pooled = any("pooler" in name.split(".") for name in tensors)
    return ViT(parsed, TOPS[named[0]][1], pooled)
