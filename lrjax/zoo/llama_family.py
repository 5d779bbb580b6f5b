"""The members of the Llama family, and the checkpoint that they are published as."""

from collections.abc import Iterator, Mapping

from lrjax.zoo import names
from lrjax.zoo.llama_config import (
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from lrjax.zoo.moe import experts_layout
from lrjax.zoo.moe_config import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig
from lrjax.zoo.names import Tensor

FAMILY: Mapping[str, type[LlamaConfig]] = {
    kind.model_type: kind
    for kind in (
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
        GemmaConfig,
        Gemma2Config,
        MixtralConfig,
        Qwen2MoeConfig,
        Qwen3MoeConfig,
    )
}
"""The configs by their published ``model_type``."""


def layout(c: LlamaConfig) -> Iterator[Tensor]:
    """The published checkpoint of the family, tensor by tensor."""
    tied = ("lm_head.weight",) if c.tie_word_embeddings else ()
    yield from names.embed("model.embed_tokens", "embed", copies=tied)
    for i in range(c.num_hidden_layers):
        theirs, ours = f"model.layers.{i}", f"layer_{i}"
        for kind in ("query", "key", "value", "output"):
            bias = c.biases[kind == "output"]
            name = f"{theirs}.self_attn.{kind[0]}_proj"
            yield from names.dense(name, f"{ours}/attention/{kind}", bias=bias)
        if c.qk_norm:
            for kind in ("query", "key"):
                name = f"{theirs}.self_attn.{kind[0]}_norm"
                yield from names.scale(name, f"{ours}/attention/{kind}_norm")
        yield from names.scale(f"{theirs}.input_layernorm", f"{ours}/attention_norm")
        if c.sandwich:
            after = f"{theirs}.post_attention_layernorm"
            yield from names.scale(after, f"{ours}/attention_post_norm")
            yield from names.scale(f"{theirs}.pre_feedforward_layernorm", f"{ours}/mlp_norm")
            yield from names.scale(f"{theirs}.post_feedforward_layernorm", f"{ours}/mlp_post_norm")
        else:
            yield from names.scale(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm")
        if c.sparse(i):
            yield from experts_layout(c, theirs, f"{ours}/experts")
        else:
            yield from names.gated(f"{theirs}.mlp", f"{ours}/mlp", bias=c.biases[2])
    yield from names.scale("model.norm", "norm")
    if not c.tie_word_embeddings:
        yield from names.dense("lm_head", "head", bias=False)
