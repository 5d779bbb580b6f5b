"""The configs of the Llama family's mixtures of experts: Mixtral and Qwen-MoE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lrjax.zoo.config import refuse
from lrjax.zoo.llama_config import MistralConfig, Qwen2Config, sliding


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """Mixtral (arXiv:2401.04088): every MLP is a mixture of experts."""

    model_type: ClassVar[str] = "mixtral"
    architecture: ClassVar[str] = "MixtralForCausalLM"
    aliases: ClassVar[Mapping[str, str]] = {"num_local_experts": "num_experts"}
    theta: ClassVar[float] = 1e6
    shared: ClassVar[bool] = False
    rms_norm_eps: float = 1e-5
    sliding_window: int | None = None
    num_experts_per_tok: int = 2
    num_local_experts: int = 8

    def check(self) -> None:
        """Refuses more experts a token than there are."""
        super().check()
        _routes(self.num_experts_per_tok, self.experts)

    @property
    def experts(self) -> int:
        """The number of experts of a layer."""
        return self.num_local_experts

    @property
    def expert_size(self) -> int:
        """The width of an expert."""
        return self.intermediate_size

    @property
    def normalised(self) -> bool:
        """Whether the weights of the chosen experts sum to one."""
        return True

    def sparse(self, layer: int) -> bool:
        """All are."""
        return True


@dataclass(frozen=True, kw_only=True)
class Qwen2MoeConfig(Qwen2Config):
    """Qwen1.5-MoE and Qwen2-MoE: many small experts, and one that every token visits."""

    model_type: ClassVar[str] = "qwen2_moe"
    architecture: ClassVar[str] = "Qwen2MoeForCausalLM"
    aliases: ClassVar[Mapping[str, str]] = {"num_experts": "num_local_experts"}
    shared: ClassVar[bool] = True
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    decoder_sparse_step: int = 1
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    num_experts_per_tok: int = 4
    num_experts: int = 60
    norm_topk_prob: bool = False
    mlp_only_layers: tuple[int, ...] | None = None
    qkv_bias: bool = True

    def check(self) -> None:
        """Refuses more experts a token than there are."""
        super().check()
        _routes(self.num_experts_per_tok, self.num_experts)

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """On query, key and value, unless told."""
        return self.qkv_bias, False, False

    @property
    def experts(self) -> int:
        """The number of experts of a layer."""
        return self.num_experts

    @property
    def expert_size(self) -> int:
        """The width of an expert."""
        return self.moe_intermediate_size

    @property
    def normalised(self) -> bool:
        """Whether the weights of the chosen experts sum to one."""
        return self.norm_topk_prob

    def window(self, layer: int) -> int | None:
        """By the layer's type; every other one of the lower layers where no types are given."""
        default = layer % 2 == 0 and layer < self.max_window_layers
        windowed = sliding(self.layer_types, layer, self.use_sliding_window and default)
        return self.sliding_window if self.use_sliding_window and windowed else None

    def sparse(self, layer: int) -> bool:
        """Every so many layers, but for those that are named as plain."""
        regular = self.num_experts > 0 and (layer + 1) % self.decoder_sparse_step == 0
        return regular and layer not in (self.mlp_only_layers or ())


@dataclass(frozen=True, kw_only=True)
class Qwen3MoeConfig(Qwen2MoeConfig):
    """Qwen3-MoE (arXiv:2505.09388): as Qwen3, without an expert that every token visits."""

    model_type: ClassVar[str] = "qwen3_moe"
    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    shared: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True
    intermediate_size: int = 6144
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 4
    moe_intermediate_size: int = 768
    num_experts_per_tok: int = 8
    num_experts: int = 128

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """All four of the attention, if any."""
        return self.attention_bias, self.attention_bias, False

    def window(self, layer: int) -> int | None:
        """The same for all layers."""
        return self.sliding_window if self.use_sliding_window else None


def _routes(chosen: int, experts: int) -> None:
    if not 1 <= chosen <= max(experts, 1):
        refuse("num_experts_per_tok", chosen, f"between 1 and {experts}, the number of experts")
