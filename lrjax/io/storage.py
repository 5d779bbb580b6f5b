"""Named tensors in a folder, as safetensors or as an orbax checkpoint."""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrjax.errors import ArtefactError, CheckpointError, message
from lrjax.io import hf, orbax

Array = jax.Array | np.ndarray
Header = Mapping[str, tuple[tuple[int, ...], str]]  # name to shape and dtype

ORBAX_FOLDER = "orbax"


class Storage(enum.Enum):
    """How the tensors of an artefact lie on disk."""

    SAFETENSORS = "safetensors"
    ORBAX = "orbax"


def write(folder: Path, tensors: Mapping[str, Array], storage: Storage, shard_bytes: int) -> None:
    """Writes all tensors.

    Raises:
        ArtefactError: a tensor's dtype or name has no place in this storage.
    """
    try:
        if storage is Storage.ORBAX:
            orbax.write(folder / ORBAX_FOLDER, tensors)
            return
        shards = list(hf.split(tensors, shard_bytes))
        for i, shard in enumerate(shards, 1):
            name = "weights" if len(shards) == 1 else f"weights-{i:05d}-of-{len(shards):05d}"
            hf.write_file(folder / f"{name}.safetensors", shard)
    except CheckpointError as cause:
        raise ArtefactError(str(cause)) from cause


def header(folder: Path, storage: Storage) -> Header:
    """Shape and dtype of each tensor that is there, without reading one.

    Raises:
        ArtefactError: a file is truncated or not of its kind.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    try:
        if storage is Storage.ORBAX:
            return orbax.header(folder / ORBAX_FOLDER)
        for file in _shards(folder):
            for name, entry in hf.header(file).items():
                if name in found:
                    path = f"{file}, {name}"
                    todo = "Remove the file that does not belong there."
                    got = "a tensor that another file holds too"
                    raise ArtefactError(message(path=path, got=got, expected="it once", todo=todo))
                found[name] = (entry.shape, entry.dtype.name)
    except CheckpointError as cause:
        raise ArtefactError(str(cause)) from cause
    return found


def read(folder: Path, storage: Storage) -> Mapping[str, np.ndarray]:
    """All tensors, in host memory or mapped from the file.

    Raises:
        ArtefactError: a tensor cannot be read.
    """
    try:
        if storage is Storage.ORBAX:
            return orbax.read_flat(folder / ORBAX_FOLDER)
        entries: dict[str, Any] = {}
        for file in _shards(folder):
            entries |= hf.header(file)
        return hf.Checkpoint(entries)
    except CheckpointError as cause:
        raise ArtefactError(str(cause)) from cause


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights*.safetensors"))
