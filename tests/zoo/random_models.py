"""Random small configurations of every family, for the reference library to make and to judge.

    python tests/zoo/random_models.py make FOLDER SEED    # needs torch and transformers
    python tests/zoo/random_models.py judge FOLDER

``make`` writes a folder a model, with its checkpoint, its inputs and its outputs. ``judge`` loads
the checkpoint ``dense`` of each folder and compares the outputs; it returns how many differ.
"""

import pathlib
import random
import sys

import numpy as np
import torch
import transformers as T
from make_goldens import IMAGE, LLAMA3, YARN, write

TOLERANCE = 1e-4
ROPES = [
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    LLAMA3,
    YARN,
]


def configurations(draw: random.Random):
    """Pairs of a class and a configuration."""
    one, flip = draw.choice, lambda: draw.choice([True, False])

    def decoder(**fixed):
        heads = one([2, 4, 6])
        sizes = {
            "vocab_size": one([50, 67, 101]),
            "hidden_size": 8 * heads,
            "intermediate_size": one([28, 44, 64]),
            "num_hidden_layers": one([1, 2, 3]),
            "num_attention_heads": heads,
            "num_key_value_heads": one([g for g in (1, 2, 3, 6) if heads % g == 0]),
            "max_position_embeddings": 64,
            "rms_norm_eps": one([1e-5, 1e-6]),
            "tie_word_embeddings": flip(),
        }
        return sizes | fixed

    own = lambda **fixed: decoder(head_dim=one([6, 10, 16]), **fixed)
    experts = lambda: {
        "num_experts": 4,
        "num_experts_per_tok": one([1, 2, 3]),
        "moe_intermediate_size": 16,
        "norm_topk_prob": flip(),
    }
    windows = lambda: {
        "use_sliding_window": flip(),
        "sliding_window": 4,
        "max_window_layers": one([0, 1]),
    }
    text = lambda: {
        "vocab_size": 71,
        "hidden_size": 24,
        "num_hidden_layers": one([1, 2, 4]),
        "num_attention_heads": one([2, 3]),
        "intermediate_size": 40,
        "max_position_embeddings": 40,
        "num_labels": 3,
    }
    albert = lambda: {
        "embedding_size": 12,
        "num_hidden_groups": one([1, 2]),
        "inner_group_num": one([1, 2]),
        "num_hidden_layers": 4,
    }
    gpt2 = lambda: {
        "vocab_size": 71,
        "n_embd": one([24, 36]),
        "n_layer": one([1, 2, 3]),
        "n_head": one([2, 3]),
        "n_positions": 40,
        "n_inner": one([None, 50]),
        "activation_function": one(["gelu_new", "relu"]),
        "scale_attn_by_inverse_layer_idx": flip(),
    }
    resnet = lambda kind: T.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type=kind, num_labels=4
    )
    for rope in ROPES:
        bias = {"attention_bias": flip(), "mlp_bias": flip()}
        yield T.LlamaForCausalLM, T.LlamaConfig(**own(**bias, rope_parameters=rope))
    for window in (None, 3):
        yield T.MistralForCausalLM, T.MistralConfig(**own(sliding_window=window))
        yield T.Qwen2ForCausalLM, T.Qwen2Config(**decoder(**windows()))
        yield T.Qwen3ForCausalLM, T.Qwen3Config(**own(attention_bias=flip()))
    yield T.GemmaForCausalLM, T.GemmaConfig(**own(tie_word_embeddings=True))
    yield T.Gemma2ForCausalLM, T.Gemma2Config(**own(sliding_window=4, query_pre_attn_scalar=9))
    chosen = one([1, 2])
    yield (
        T.MixtralForCausalLM,
        T.MixtralConfig(**own(num_local_experts=3, num_experts_per_tok=chosen)),
    )
    yield (
        T.Qwen2MoeForCausalLM,
        T.Qwen2MoeConfig(**decoder(shared_expert_intermediate_size=24, **experts())),
    )
    yield T.Qwen3MoeForCausalLM, T.Qwen3MoeConfig(**own(**experts()))
    for _ in range(2):
        yield T.GPT2LMHeadModel, T.GPT2Config(**gpt2())
    for cls in (T.BertModel, T.BertForMaskedLM, T.BertForSequenceClassification):
        yield cls, T.BertConfig(**text())
    for cls in (T.AlbertModel, T.AlbertForMaskedLM):
        yield cls, T.AlbertConfig(**text() | albert())
    yield T.ViTForImageClassification, T.ViTConfig(**IMAGE, qkv_bias=flip())
    yield T.DeiTForImageClassificationWithTeacher, T.DeiTConfig(**IMAGE, qkv_bias=flip())
    for kind in ("basic", "bottleneck"):
        yield T.ResNetForImageClassification, resnet(kind)


def make(root: pathlib.Path, seed: str) -> int:
    for i, (cls, config) in enumerate(configurations(random.Random(int(seed)))):
        write(root / f"{i:02d}_{cls.__name__}", cls, config)
    return 0


def judge(root: pathlib.Path) -> int:
    wrong = 0
    for folder in sorted(root.iterdir()):
        cls = getattr(T, folder.name.split("_", 1)[1])
        model, info = cls.from_pretrained(folder / "dense", output_loading_info=True)
        given = {k: torch.from_numpy(v) for k, v in np.load(folder / "golden.npz").items()}
        wanted, mask = given.pop("output"), given.get("attention_mask")
        if "input_ids" in given:
            given = {k: v.long() for k, v in given.items()}
        with torch.no_grad():
            said = model.eval()(**given)
        found = said.logits if getattr(said, "logits", None) is not None else said.last_hidden_state
        real = mask > 0 if mask is not None and wanted.ndim == 3 else slice(None)
        error = float((found - wanted)[real].abs().max())
        missing = [key for key in info["missing_keys"] if "position_ids" not in key]
        if missing or not error < TOLERANCE:
            wrong += 1
            print(f"{folder.name}: error {error:.1e}, missing {missing}")
    return wrong


if __name__ == "__main__":
    verb, folder, *seed = sys.argv[1:]
    sys.exit({"make": make, "judge": judge}[verb](pathlib.Path(folder), *seed))
