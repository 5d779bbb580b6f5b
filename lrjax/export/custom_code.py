"""A checkpoint that stays factored, with the code that the reference library runs it by."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrjax.errors import CheckpointError, message
from lrjax.export.factors import Layer, factored, leaves_of, remainder, segment
from lrjax.io import hf
from lrjax.zoo.load import published

CODE = "modeling_lrjax.py"

AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "Model": "AutoModel",
}
"""The reference library's loaders by the end of the architecture's name."""


def custom_code(
    folder: str | os.PathLike[str],
    model: Any,
    params: Mapping[str, Any],
    *,
    densify: bool = False,
    extra_files: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> None:
    """Writes a folder that the reference library loads and runs factored, with equal logits.

        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

    ``modeling_lrjax.py`` beside the weights is short and made to be read: it takes the published
    model and puts a pair of linear layers where a weight is of low rank. MLPs that were cut to
    sizes of their own are written too.

    Args:
        folder: where.
        model: a model of the zoo, of the Llama family, GPT-2 or BERT.
        params: its parameters.
        densify: write weights of other formats dense, instead of refusing them.
        extra_files: copied beside the weights (tokenizer, licence).
        overwrite: replace a checkpoint that is there.

    Raises:
        CheckpointError: a weight is in another format, or the attention has another shape than the
            published one.
    """
    for key in model.config.extensions:
        if key != "mlp_sizes":
            expected = "heads as published; factors, and MLPs of any size"
            todo = "Keep this model as an artefact: lrjax.save."
            raise CheckpointError(
                message(path=f"config.json, {key}", got="heads cut", expected=expected, todo=todo)
            )
    leaves = leaves_of(model, params, densify=densify)
    layers = [*factored(model, leaves), *_resized(model, leaves)]
    names = {layer.name for layer in layers}
    own = {
        name: x
        for name, x in published(model, remainder(leaves)).items()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in names)
    }
    tensors = own | {name: x for layer in layers for name, x in _tensors(layer)}
    config = model.config.to_json()
    config.pop("mlp_sizes", None)
    class_name = f"Factored{model.architecture}"
    auto = next(loader for end, loader in AUTO.items() if model.architecture.endswith(end))
    config |= {
        "architectures": [class_name],
        "auto_map": {auto: f"{CODE.removesuffix('.py')}.{class_name}"},
        "factored": {layer.name: _shape(layer, f"{layer.name}.bias" in own) for layer in layers},
    }
    code = (Path(__file__).parent / "modeling.py.txt").read_text()
    draft = {CODE: code.replace("BaseModel", model.architecture)}
    hf.write(
        folder, tensors, config=config, extra_files=extra_files, texts=draft, overwrite=overwrite
    )


def _resized(model: Any, leaves: Mapping[str, Any]) -> Iterator[Layer]:
    """The dense layers of MLPs with sizes of their own, which the published config cannot say."""
    if model.config.mlp_sizes is None:
        return
    pairs = {layer.name for layer in factored(model, leaves)}
    for tensor in model.layout():
        name = tensor.name.removesuffix(".weight")
        if "/mlp/" in tensor.path and tensor.path.endswith("kernel") and name not in pairs:
            yield Layer(name, (segment(tensor, leaves),))


def _shape(layer: Layer, bias: bool) -> dict[str, Any]:
    """What the code must know to build the layer."""
    segments = [
        {"out": s.shape[1], "rank": s.rank, "dense": s.dense is not None} for s in layer.segments
    ]
    return {"in": layer.segments[0].shape[0], "segments": segments, "bias": bias}


def _tensors(layer: Layer) -> Iterator[tuple[str, np.ndarray]]:
    for k, s in enumerate(layer.segments):
        parts = {"down": s.left, "up": s.right, "dense": s.dense}
        for kind, x in parts.items():
            if x is not None:
                yield f"{layer.name}.segments.{k}.{kind}.weight", x.T
