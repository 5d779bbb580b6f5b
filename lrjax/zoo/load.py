"""Checkpoints in and out: ``load(folder) -> (model, params)`` and back, bit by bit.

The model is chosen by ``model_type`` in ``config.json``. Every tensor of the file must belong to
the model, and every parameter of the model must be in the file, in the right shape and finite.
"""

import functools
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax.core import meta
from flax.traverse_util import unflatten_dict

from lrjax import io, ops, trees
from lrjax.errors import CheckpointError, message
from lrjax.io import hf
from lrjax.zoo.models import READERS
from lrjax.zoo.names import Tensor

BUFFERS = (
    ".position_ids",
    ".token_type_ids",
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".num_batches_tracked",
)
"""Ends of names of tensors that files of the wild carry and that are no weights."""

DTYPES = ("float32", "bfloat16", "float16")


def load(folder: str | os.PathLike[str]) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint in the published layout, or an artefact of one of the zoo's models.

    A published checkpoint is ``config.json`` beside safetensors, in one file or in shards with an
    index. Its tensors are placed one by one, and block by block, so that the peak of memory is
    little above the parameters themselves.

    Returns:
        The Flax model, with its ``config``, and its parameters in the dtype of the file:
        ``model.apply({"params": params}, ...)``.

    Raises:
        CheckpointError: no such folder, an unknown architecture, an option of it that the zoo does
            not support, an absent shard, a truncated file, a missing, extra or mis-shaped tensor,
            a weight that is not finite.
        ArtefactError: the folder is a damaged artefact.
    """
    folder = Path(folder)
    if io.is_artefact(folder):
        return _artefact(folder)
    config = _config(folder)
    _known(folder, config)
    file = hf.read(folder)
    model = READERS[config["model_type"]](config, file)
    return model, _params(model, file, folder)


def model_of(config: Mapping[str, Any], params: Any) -> Any | None:
    """The model of the zoo that a config and a parameter tree, dense or factored, describe.

    None where the config is of no model of the zoo, or the tree has other paths than its model.
    """
    reader = READERS.get(str(config.get("model_type")))
    if reader is None:
        return None
    paths = trees.paths(params)
    model = reader(config, [path.replace("/", ".") for path in paths])
    forms = [model]
    if hasattr(model, "scanned"):
        forms.append(model.clone(scanned=True))
    return next((m for m in forms if shapes_of(m).keys() == set(paths)), None)


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
        CheckpointError: the parameters are not this model's, the published architecture has no
            words for its shape, or the folder exists.
    """
    for key, value in model.config.extensions.items():
        _fail(
            f"config.json, {key}",
            got=str(value),
            expected="nothing: the published architecture has no such key",
            todo="Keep this model as an artefact: lrjax.save(..., config=model.config.to_json()).",
        )
    leaves, _ = trees.flatten(params)
    shapes = shapes_of(model)
    for path in sorted(shapes.keys() | leaves.keys()):
        got = f"shape {leaves[path].shape}" if path in leaves else "no such parameter"
        expected = f"shape {shapes[path].shape}" if path in shapes else "none in this model"
        if got != expected:
            todo = "Save the parameters with the model that they were loaded with."
            _fail(path, got=got, expected=expected, todo=todo)
    dense = {path: np.asarray(ops.densify(leaf)) for path, leaf in leaves.items()}
    config = {"architectures": [model.architecture], **model.config.to_json()}
    tensors = published(model, dense)
    hf.write(folder, tensors, config=config, extra_files=extra_files, overwrite=overwrite)


def published(model: Any, dense: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the published checkpoint, from dense leaves by path."""
    tensors: dict[str, np.ndarray] = dict(getattr(model, "constants", dict)())
    for tensor in model.layout():
        own = tensor.encode(dense[tensor.path])
        if tensor.part is None:
            tensors[tensor.name] = own
            continue
        shape = tensor.published(dense[tensor.path].shape)
        whole = tensors.setdefault(tensor.name, np.empty(shape, own.dtype))
        whole[tensor.window(shape)] = own
    return tensors


@functools.lru_cache(16)
def shapes_of(model: Any) -> Mapping[str, jax.ShapeDtypeStruct]:
    """The shapes of a zoo model's parameters by path, nothing computed."""
    init = lambda: model.init(jax.random.key(0), *model.example())
    return trees.flatten(meta.unbox(jax.eval_shape(init))["params"])[0]


def _artefact(folder: Path) -> tuple[Any, Any]:
    artefact = io.load(folder)
    config = dict(artefact.config) if artefact.config else _config(folder)
    _known(folder, config)
    model = model_of(config, artefact.params)
    if model is None:
        _fail(
            str(folder),
            got=f"parameters {', '.join(trees.paths(artefact.params)[:3])}, ...",
            expected=f"those of the {config['model_type']} that its config describes",
            todo="Save the artefact with the config of its model.",
        )
    return model, artefact.params


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


def _known(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in READERS:
        _fail(
            f"{folder}/config.json, model_type",
            got="nothing" if kind is None else repr(kind),
            expected=" or ".join(map(repr, READERS)),
            todo="Load a model of the zoo, or bring your own: lrjax.lift runs any JAX function.",
        )


def _params(model: Any, file: hf.Checkpoint, folder: Path) -> dict[str, Any]:
    shapes = shapes_of(model)
    fillers: dict[str, list[tuple[Tensor, str]]] = {}
    for tensor, name in _names(folder, file, tuple(model.layout()), shapes).items():
        entry, shape = file.entries[name], tensor.published(shapes[tensor.path].shape)
        own = fillers.setdefault(tensor.path, [])
        kinds = (file.entries[own[0][1]].dtype.name,) if own else DTYPES
        if entry.shape != shape or entry.dtype.name not in kinds:
            _fail(
                f"{entry.file}, {name}",
                got=f"shape {entry.shape}, {entry.dtype}",
                expected=f"shape {shape} by config.json, in {' or '.join(kinds)}",
                todo="Check that config.json and the weights are of one model.",
            )
        own.append((tensor, name))
    leaves = {path: _leaf(file, shapes[path].shape, own) for path, own in fillers.items()}
    return unflatten_dict(leaves, sep="/")


def _names(
    folder: Path,
    file: hf.Checkpoint,
    layout: tuple[Tensor, ...],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[Tensor, str]:
    """Each tensor's name in this file; every name must be wanted, every tensor must be there."""
    found = {t: next((n for n in (t.name, *t.aliases) if n in file), None) for t in layout}
    missing = {t.name: t.published(shapes[t.path].shape) for t, n in found.items() if n is None}
    wanted = {n for n in found.values() if n is not None}
    copies = {c: n for t, n in found.items() for c in t.copies if n is not None}
    extra = {n: file.entries[n].shape for n in file if n not in wanted | copies.keys()}
    extra = {n: shape for n, shape in extra.items() if not f".{n}".endswith(BUFFERS)}
    for kind, names in (("missing", missing), ("extra", extra)):
        if not names:
            continue
        first, shape = next(iter(names.items()))
        few = ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
        where = folder if kind == "missing" else file.entries[first].file
        describes = f"the {len({t.name for t in layout})} tensors that config.json describes"
        _fail(
            f"{where}, {first}",
            got=f"{len(names)} {kind} tensor{'s' * (len(names) > 1)} ({few})"
            + (f", the first of shape {shape}" if kind == "extra" else ""),
            expected=describes + (f", {first} of shape {shape}" if kind == "missing" else ""),
            todo="Check that config.json and the weights are of one model.",
        )
    for copy, name in copies.items():
        if copy in file and not _equal(file, copy, name):
            _fail(
                f"{file.entries[copy].file}, {copy}",
                got=f"other values than {name}",
                expected="the same, for config.json ties the two",
                todo="Set tie_word_embeddings to false, or drop the copy.",
            )
    return {t: name for t, name in found.items() if name is not None}


def _leaf(
    file: hf.Checkpoint, shape: tuple[int, ...], fillers: Collection[tuple[Tensor, str]]
) -> jax.Array:
    """One parameter, filled from its tensors."""
    _, first = next(iter(fillers))
    leaf = _aligned(shape, file.entries[first].dtype)
    for tensor, name in fillers:
        own, bad = tensor.encode(leaf), 0
        top, *across = tensor.window(file.entries[name].shape) or (slice(0, 1),)
        for rows, block in file.blocks(name):
            if isinstance(rows, slice):
                low, high = max(rows.start, top.start), min(rows.stop, top.stop)
                if low >= high:
                    continue
                block = block[(slice(low - rows.start, high - rows.start), *across)]
                rows = slice(low - top.start, high - top.start)
            bad += block.size - int(np.isfinite(block).sum())
            own[rows] = block
        if bad:
            _fail(
                f"{file.entries[name].file}, {name}",
                got=f"{bad} of {own.size} values NaN or infinite",
                expected=f"finite weights, shape {file.entries[name].shape}",
                todo="Restore the checkpoint from its source.",
            )
    return jax.device_put(leaf)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that a CPU device takes over as it is: XLA wants its buffers at multiples of 64."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _equal(file: hf.Checkpoint, one: str, other: str) -> bool:
    a, b = file.entries[one], file.entries[other]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    pairs = zip(file.blocks(one), file.blocks(other), strict=True)
    return all(np.array_equal(x, y) for (_, x), (_, y) in pairs)


def _fail(path: str, *, got: str, expected: str, todo: str) -> NoReturn:
    raise CheckpointError(message(path=path, got=got, expected=expected, todo=todo))
