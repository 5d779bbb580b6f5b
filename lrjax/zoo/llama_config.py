"""The configs of the Llama family: what each member's ``config.json`` says, and what it means.

Every class bears the defaults of its published config; the properties translate it into the few
choices that the decoder in ``llama.py`` knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lrjax.zoo import rope
from lrjax.zoo.config import divides, extension, one_of, refuse
from lrjax.zoo.latent_config import LatentSizes
from lrjax.zoo.layers import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(LatentSizes):
    """Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783)."""

    model_type: ClassVar[str] = "llama"
    architecture: ClassVar[str] = "LlamaForCausalLM"
    theta: ClassVar[float] = 10000.0
    qk_norm: ClassVar[bool] = False
    gemma: ClassVar[bool] = False
    sandwich: ClassVar[bool] = False

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    original_max_position_embeddings: int | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float | None = None
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | None = None
    use_bidirectional_attention: bool | None = None
    key_pairs: tuple[Any, ...] | None = extension()

    def check(self) -> None:
        """Refuses what the decoder does not model."""
        super().check()
        one_of("hidden_act", self.act, ACTIVATIONS)
        one_of("use_bidirectional_attention", self.use_bidirectional_attention, (None, False))
        if self.head_dim is None:
            heads, size = self.num_attention_heads, self.hidden_size
            divides("num_attention_heads", heads, "hidden_size", size)
        heads = self.num_attention_heads
        divides("num_key_value_heads", self.groups, "num_attention_heads", heads)
        _ = self.rope, [self.window(i) for i in range(self.num_hidden_layers)]
        for i, pairs in enumerate(self.key_pairs or []):
            if pairs is not None and {len(own) for own in pairs} != {self.key_size(i) // 2}:
                half = f"{self.key_size(i) // 2} pairs for each of {self.groups} key heads"
                refuse("key_pairs", f"{pairs} in layer {i}", half)

    def pairs(self, layer: int) -> tuple[tuple[int, ...], ...] | None:
        """The rotated pairs that the key heads of a layer have, each its own; None is all."""
        return None if self.key_pairs is None else self.key_pairs[layer]

    @property
    def groups(self) -> int:
        """The number of key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """The same."""
        return self.groups

    @property
    def rotated(self) -> bool:
        """They are."""
        return True

    @property
    def head_size(self) -> int:
        """The width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def act(self) -> str:
        """The name of the non-linearity on the gate."""
        return self.hidden_act

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether query, key and value, whether output, and whether the MLP have biases."""
        return self.attention_bias, self.attention_bias, self.mlp_bias

    @property
    def scale(self) -> float:
        """What the scores are multiplied with."""
        return self.head_size**-0.5

    @property
    def rope(self) -> dict[str, Any]:
        """The rotations' parameters, from the old or from the new form of the config."""
        old = self.rope_scaling is not None and len(self.rope_scaling) > 0
        return rope.parameters(
            "rope_scaling" if old else "rope_parameters",
            self.rope_scaling if old else self.rope_parameters,
            theta=self.theta if self.rope_theta is None else self.rope_theta,
            longest=self.max_position_embeddings,
            original=self.original_max_position_embeddings,
            head_dim=self.head_size,
        )

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer sees; None is all of them."""
        return None


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """Mistral (arXiv:2310.06825): every layer sees a window."""

    model_type: ClassVar[str] = "mistral"
    architecture: ClassVar[str] = "MistralForCausalLM"
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 4096 * 32
    sliding_window: int | None = 4096

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """None, whatever the config says."""
        return False, False, False

    def window(self, layer: int) -> int | None:
        """The same for all layers."""
        return self.sliding_window


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """Qwen2 and Qwen2.5 (arXiv:2407.10671): biases on query, key and value; windows, if wanted."""

    model_type: ClassVar[str] = "qwen2"
    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    vocab_size: int = 151936
    intermediate_size: int = 22016
    num_key_value_heads: int | None = 32
    max_position_embeddings: int = 32768
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: tuple[str, ...] | None = None

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """On query, key and value alone."""
        return True, False, False

    def window(self, layer: int) -> int | None:
        """By the layer's type; the upper layers have a window where no types are given."""
        default = self.use_sliding_window and layer >= self.max_window_layers
        windowed = sliding(self.layer_types, layer, default)
        return self.sliding_window if self.use_sliding_window and windowed else None


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(Qwen2Config):
    """Qwen3 (arXiv:2505.09388): queries and keys are normalised, head by head."""

    model_type: ClassVar[str] = "qwen3"
    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    qk_norm: ClassVar[bool] = True
    head_dim: int | None = 128

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """All four of the attention, if any."""
        return self.attention_bias, self.attention_bias, False


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """Gemma (arXiv:2403.08295): scaled embeddings, scales stored as differences from one."""

    model_type: ClassVar[str] = "gemma"
    architecture: ClassVar[str] = "GemmaForCausalLM"
    gemma: ClassVar[bool] = True
    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True

    @property
    def act(self) -> str:
        """The first releases wrote gelu and meant its approximation by tanh."""
        return "gelu_pytorch_tanh" if self.hidden_act == "gelu" else self.hidden_act

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """All four of the attention, if any."""
        return self.attention_bias, self.attention_bias, False


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """Gemma 2 (arXiv:2408.00118): norms before and after, bounded scores, every other window."""

    model_type: ClassVar[str] = "gemma2"
    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    sandwich: ClassVar[bool] = True
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: int | float = 256
    sliding_window: int | None = 4096
    layer_types: tuple[str, ...] | None = None
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0

    @property
    def act(self) -> str:
        """Under another key than elsewhere."""
        return self.hidden_activation

    @property
    def scale(self) -> float:
        """Fixed by the config."""
        return self.query_pre_attn_scalar**-0.5

    def window(self, layer: int) -> int | None:
        """By the layer's type; the first and every other one where no types are given."""
        windowed = sliding(self.layer_types, layer, layer % 2 == 0)
        return self.sliding_window if windowed else None


def sliding(types: tuple[str, ...] | None, layer: int, default: bool) -> bool:
    """Whether a layer has a window: by its type, or ``default`` where no types are given."""
    if types is None:
        return default
    if layer >= len(types):
        refuse("layer_types", f"{len(types)} types", "one for each of num_hidden_layers")
    one_of("layer_types", types[layer], ("full_attention", "sliding_attention"))
    return types[layer] == "sliding_attention"
