"""Published checkpoints in and out: ``load(folder) -> (model, params)`` and back, bit by bit.

The model is chosen by ``model_type`` in ``config.json``. Every tensor of the file must belong to
the model, and every parameter of the model must be in the file, in the right shape and finite.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from flax.traverse_util import unflatten_dict

from lrjax import ops, trees
from lrjax.errors import CheckpointError, message
from lrjax.io import hf
from lrjax.zoo import bert
from lrjax.zoo.names import Tensor

READERS: Mapping[str, Callable[..., Any]] = {"bert": bert.read}
"""``model_type`` -> the function that builds the model from its config and the file's names."""

BUFFERS = ("position_ids",)
"""Last names of tensors that files of the wild carry and that are no weights."""


def load(folder: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint in the published layout: ``config.json`` beside safetensors.

    Returns:
        The Flax model, with its ``config``, and its parameters in the dtype of the file:
        ``model.apply({"params": params}, ...)``.

    Raises:
        CheckpointError: no such folder, an unknown architecture, a truncated file, a missing,
            extra or mis-shaped tensor, a weight that is not finite.
    """
    folder = Path(folder)
    config = _config(folder)
    kind = config.get("model_type")
    if kind not in READERS:
        _fail(
            f"{folder}/config.json, model_type",
            got="nothing" if kind is None else repr(kind),
            expected=" or ".join(map(repr, READERS)),
            todo="Load a model of the zoo, or bring your own: lrjax.lift runs any JAX function.",
        )
    file = hf.read(folder)
    model = READERS[str(kind)](config, file)
    shapes = shapes_of(model)
    names = _names(folder, file, tuple(model.layout()))
    for tensor, name in names.items():
        entry, shape = file.entries[name], tensor.published(shapes[tensor.path].shape)
        if entry.shape != shape or not jnp.issubdtype(entry.dtype, jnp.floating):
            _fail(
                f"{entry.file}, {name}",
                got=f"shape {entry.shape}, {entry.dtype}",
                expected=f"shape {shape} by config.json, in floating point",
                todo="Check that config.json and the weights are of one model.",
            )
    leaves = {t.path: _read(file, name, t) for t, name in names.items()}
    return model, unflatten_dict(leaves, sep="/")


def save(
    folder: str | os.PathLike[str],
    model: Any,
    params: Mapping[str, Any],
    *,
    extra_files: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint in the published layout, which the reference implementation loads.

    Factored weights are written dense, for the published layout knows no others: ``lrjax.save``
    keeps them factored. ``extra_files`` (a tokenizer) are copied beside the weights.

    Raises:
        CheckpointError: the parameters are not this model's, or the folder exists.
    """
    leaves, _ = trees.flatten(params)
    shapes = shapes_of(model)
    for path in sorted(shapes.keys() | leaves.keys()):
        got = f"shape {leaves[path].shape}" if path in leaves else "no such parameter"
        expected = f"shape {shapes[path].shape}" if path in shapes else "none in this model"
        if got != expected:
            todo = "Save the parameters with the model that they were loaded with."
            _fail(path, got=got, expected=expected, todo=todo)
    tensors = {t.name: t.encode(np.asarray(ops.densify(leaves[t.path]))) for t in model.layout()}
    config = model.config.to_json()
    hf.write(folder, tensors, config=config, extra_files=extra_files, overwrite=overwrite)


def shapes_of(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a zoo model's parameters by path, nothing computed."""
    init = lambda: model.init(jax.random.key(0), *model.example())
    return trees.flatten(meta.unbox(jax.eval_shape(init))["params"])[0]


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    expected = "the folder of a published checkpoint: config.json beside safetensors"
    todo = "Give the folder that holds both."
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        _fail(str(folder), got=got, expected=expected, todo=todo)
    try:
        config = json.loads(path.read_text())
    except OSError as reason:
        _fail(str(path), got=reason.strerror or str(reason), expected=expected, todo=todo)
    except ValueError as reason:
        _fail(str(path), got=f"broken JSON ({reason})", expected="a JSON object", todo=todo)
    if not isinstance(config, dict):
        _fail(str(path), got=type(config).__name__, expected="a JSON object", todo=todo)
    return config


def _names(folder: Path, file: Mapping[str, Any], layout: tuple[Tensor, ...]) -> dict[Tensor, str]:
    """Each tensor's name in this file; every name must be wanted, every tensor must be there."""
    found = {t: next((n for n in (t.name, *t.aliases) if n in file), None) for t in layout}
    missing = [t.name for t, name in found.items() if name is None]
    extra = [n for n in file if n not in found.values() and n.split(".")[-1] not in BUFFERS]
    for kind, names in (("missing", missing), ("extra", extra)):
        if names:
            few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            _fail(
                f"{folder}, {names[0]}",
                got=f"{len(names)} {kind} tensor{'s' * (len(names) > 1)} ({few})",
                expected=f"the {len(layout)} tensors that config.json describes",
                todo="Check that config.json and the weights are of one model.",
            )
    return {t: name for t, name in found.items() if name is not None}


def _read(file: hf.Checkpoint, name: str, tensor: Tensor) -> jax.Array:
    array = file[name]
    finite = int(np.isfinite(array).sum())
    if finite < array.size:
        _fail(
            f"{file.entries[name].file}, {name}",
            got=f"{array.size - finite} of {array.size} values NaN or infinite",
            expected="finite weights",
            todo="Restore the checkpoint from its source.",
        )
    return jnp.asarray(tensor.decode(array))


def _fail(path: str, *, got: str, expected: str, todo: str) -> NoReturn:
    raise CheckpointError(message(path=path, got=got, expected=expected, todo=todo))
