"""The config of GPT-2."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lrjax.zoo.config import divides, one_of
from lrjax.zoo.latent_config import LatentSizes
from lrjax.zoo.layers import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class GPT2Config(LatentSizes):
    """The shape of a GPT-2, in the words of its ``config.json``; the defaults are the smallest."""

    model_type: ClassVar[str] = "gpt2"
    width: ClassVar[str] = "n_inner"
    aliases: ClassVar[Mapping[str, str]] = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
    }
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def check(self) -> None:
        """Refuses what this decoder does not model."""
        super().check()
        one_of("activation_function", self.activation_function, ACTIVATIONS)
        one_of("add_cross_attention", self.add_cross_attention, (False,))
        divides("n_head", self.n_head, "n_embd", self.n_embd)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return self.n_layer

    @property
    def mlp_width(self) -> int:
        """Four times as wide unless told."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_size(self) -> int:
        """The width of a head."""
        return self.n_embd // self.n_head

    @property
    def query_heads(self) -> int:
        """As many as key and value heads."""
        return self.n_head

    def scale(self, layer: int) -> float:
        """What the scores of a layer are multiplied with."""
        root = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        return root / (layer + 1) if self.scale_attn_by_inverse_layer_idx else root
