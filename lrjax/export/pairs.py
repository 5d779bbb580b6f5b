"""Factored weights as PEFT-style LoRA pairs on a dense base (arXiv:2106.09685)."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from lrjax import trees, zoo
from lrjax.errors import CheckpointError, message
from lrjax.export.factors import Layer, factored, leaves_of, remainder
from lrjax.formats import is_factored
from lrjax.io import hf
from lrjax.io.atomic import new_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "Model": "FEATURE_EXTRACTION",
}
"""PEFT's names of tasks by the end of the architecture's."""


def peft(
    folder: str | os.PathLike[str],
    model: Any,
    params: Mapping[str, Any],
    *,
    base: str | os.PathLike[str] | None = None,
    densify: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes low-rank weights as a LoRA adapter, and the dense base that it is to be put on.

    A LoRA layer is y = x W + x A B with W dense, so that the base is as large as the dense model:
    W is the dense part of a ``Sum``, and zero for a weight that is of low rank alone. The adapter
    is what changes hands; for a small file that the reference library runs see
    :func:`~lrjax.export.custom_code`. In the folder: ``adapter_config.json``,
    ``adapter_model.safetensors`` and, unless given, ``base/`` in the published layout::

        base = AutoModelForCausalLM.from_pretrained(f"{folder}/base")
        model = PeftModel.from_pretrained(base, folder)

    Args:
        folder: where.
        model: a model of the zoo, of the Llama family, GPT-2 or BERT.
        params: its parameters.
        base: a published checkpoint whose weights are the dense parts: none is written then.
        densify: write weights of other formats dense, instead of refusing them.
        overwrite: replace an adapter that is there.

    Raises:
        CheckpointError: no weight is factored, one is in another format, or the base's weights are
            not the dense parts.
    """
    leaves = leaves_of(model, params, densify=densify)
    layers = factored(model, leaves)
    if not layers:
        todo = "Save a dense model by lrjax.zoo.save."
        _fail(str(folder), "no factored weight", "at least one of low rank", todo)
    dense = remainder(leaves)
    if base is not None:
        _same(Path(base), leaves, dense)
    with new_folder(
        Path(folder), overwrite=overwrite, replaceable=_ours, error=CheckpointError
    ) as draft:
        home = Path(folder) / "base" if base is None else Path(base)
        if base is None:
            zoo.save(draft / "base", model, unflatten_dict(dense, sep="/"))
        config = _config(model, layers, str(home.absolute()))
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        hf.write_file(draft / WEIGHTS, dict(_tensors(layers)))


def _tensors(layers: list[Layer]) -> Iterator[tuple[str, np.ndarray]]:
    """A [r, in] and B [out, r]; those of fused layers side by side, B in blocks."""
    for layer in layers:
        pairs = [(s.left, s.right) for s in layer.segments if s.left is not None]
        wide = np.zeros((sum(s.shape[1] for s in layer.segments), _rank(layer)), pairs[0][0].dtype)
        row = column = 0
        for s in layer.segments:
            if s.right is not None:
                wide[row : row + s.shape[1], column : column + s.rank] = s.right.T
            row, column = row + s.shape[1], column + s.rank
        name = f"base_model.model.{layer.name}"
        yield f"{name}.lora_A.weight", np.concatenate([left.T for left, _ in pairs])
        yield f"{name}.lora_B.weight", wide


def _config(model: Any, layers: list[Layer], base: str) -> dict[str, Any]:
    """The adapter's config; alpha equals the rank, for PEFT scales by their quotient."""
    ranks = {layer.name: _rank(layer) for layer in layers}
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": next(
            (t for end, t in TASKS.items() if model.architecture.endswith(end)), None
        ),
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "fan_in_fan_out": model.config.model_type == "gpt2",
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _rank(layer: Layer) -> int:
    return sum(s.rank for s in layer.segments)


def _same(base: Path, leaves: Mapping[str, Any], dense: Mapping[str, np.ndarray]) -> None:
    """The base must hold the dense parts, and every weight that is not factored."""
    found = trees.flatten(zoo.load(base)[1])[0]
    for path in sorted(dense.keys() | found.keys()):
        if path in dense and path in found and np.array_equal(dense[path], np.asarray(found[path])):
            continue
        of = "the dense part of a sum" if is_factored(leaves.get(path)) else "the weight"
        got = "other values" if path in found and path in dense else "a weight in one of the two"
        todo = "Leave base out: one is written that fits."
        _fail(f"{base}, {path}", got, f"{of} in params", todo)


def _ours(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _fail(path: str, got: str, expected: str, todo: str) -> None:
    raise CheckpointError(message(path=path, got=got, expected=expected, todo=todo))
