"""Safetensors checkpoints in the Hugging Face layout: one file, or shards and an index."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, NoReturn

import jax
import numpy as np
import safetensors
import safetensors.numpy
from jax import numpy as jnp

from lrjax.errors import CheckpointError, message
from lrjax.io.atomic import new_folder

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BLOCK_BYTES = 2**23
SHARD_BYTES = 5 * 10**9  # the layout's usual shard size; also bounds the memory that a write needs

# safetensors' names of the element types that NumPy (with ml_dtypes) can hold.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands and what its header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype


class Checkpoint(Mapping[str, np.ndarray]):
    """Tensors by published name; headers are read at once, a tensor only when asked for.

    Files are memory-mapped by the reader, so that one tensor at a time is in memory.
    """

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        try:
            with safetensors.safe_open(entry.file, framework="numpy") as file:
                return file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as cause:
            _fail(f"{entry.file}, {name}", str(cause), f"{entry.shape} {entry.dtype}", cause)

    def blocks(
        self, name: str, limit: int = BLOCK_BYTES
    ) -> Iterator[tuple[slice | EllipsisType, np.ndarray]]:
        """The tensor's rows, a block of at most `limit` bytes (or one row) at a time.

        The file is mapped for one block only, so that copying a tensor block by block never holds
        it twice.
        """
        entry = self.entries[name]
        if not entry.shape or not entry.shape[0]:
            yield ..., self[name]
            return
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        step = max(1, limit // max(row, 1))
        for start in range(0, entry.shape[0], step):
            rows = slice(start, min(start + step, entry.shape[0]))
            try:
                with safetensors.safe_open(entry.file, framework="numpy") as file:
                    block = file.get_slice(name)[rows]
            except (safetensors.SafetensorError, OSError) as cause:
                _fail(f"{entry.file}, {name}", str(cause), f"{entry.shape} {entry.dtype}", cause)
            yield rows, block

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Checkpoint({len(self)} tensors in {len(self.files)} files)"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(sorted({entry.file for entry in self.entries.values()}))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(int(np.prod(e.shape)) * e.dtype.itemsize for e in self.entries.values())

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The tensor of that name, of that shape.

        Raises:
            CheckpointError: there is no such tensor, or it has another shape.
        """
        wanted = "a tensor" if shape is None else f"shape {tuple(shape)}"
        if name not in self.entries:
            places = ", ".join(file.name for file in self.files) or "an empty checkpoint"
            _fail(f"{places}, {name}", "no such tensor", wanted)
        entry = self.entries[name]
        if shape is not None and entry.shape != tuple(shape):
            _fail(f"{entry.file}, {name}", f"shape {entry.shape}", wanted)
        return self[name]


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a safetensors file, or a folder that holds one or an index of shards.

    Raises:
        CheckpointError: nothing to read there, a truncated or corrupt header, a shard or tensor
            that the index lists but is absent.
    """
    path = Path(path)
    if path.is_file():
        return Checkpoint(header(path))
    if not path.is_dir():
        _fail(str(path), "no such file or folder", "a safetensors file or a folder of them")
    if (path / INDEX).is_file():
        return Checkpoint(_indexed(path))
    if (path / SINGLE).is_file():
        return Checkpoint(header(path / SINGLE))
    found = sorted(p.name for p in path.glob("*.safetensors"))
    if len(found) != 1:
        got = f"{len(found)} safetensors files and no index" if found else "no safetensors file"
        _fail(str(path), got, f"{SINGLE}, {INDEX}, or one *.safetensors")
    return Checkpoint(header(path / found[0]))


def header(file: Path) -> dict[str, Entry]:
    """What the header of a safetensors file says of each tensor.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or holds an element type without a
            NumPy counterpart.
    """
    entries = {}
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    _fail(f"{file}, {name}", f"dtype {part.get_dtype()}", ", ".join(DTYPES))
                dtype = np.dtype(jnp.dtype(DTYPES[part.get_dtype()]))
                entries[name] = Entry(Path(file), tuple(part.get_shape()), dtype)
    except (safetensors.SafetensorError, OSError) as cause:
        size = file.stat().st_size if file.exists() else 0
        _fail(str(file), f"{cause} ({size} bytes)", "a whole safetensors file", cause)
    return entries


def write(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, jax.Array | np.ndarray],
    *,
    config: Mapping[str, Any] | None = None,
    extra_files: Iterable[str | os.PathLike[str]] = (),
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> None:
    """Writes a checkpoint folder that the reference library loads, whole or not at all.

    Args:
        folder: where; must not exist unless `overwrite`, which replaces a checkpoint only.
        tensors: arrays by published name.
        config: the content of `config.json`.
        extra_files: copied beside it (tokenizer, licence).
        texts: further files by name, with their content.
        shard_bytes: no shard is larger, unless one tensor is.
        overwrite: replace a checkpoint that is there.

    Raises:
        CheckpointError: the folder exists, or a tensor has a dtype that the layout lacks.
    """
    target = Path(folder)
    with new_folder(target, overwrite=overwrite, replaceable=_ours, error=CheckpointError) as draft:
        shards = list(split(tensors, shard_bytes))
        if len(shards) == 1:
            write_file(draft / SINGLE, shards[0])
        else:
            where = {}
            for i, shard in enumerate(shards, 1):
                name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                write_file(draft / name, shard)
                where |= dict.fromkeys(shard, name)
            total = sum(x.nbytes for x in tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
            (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if config is not None:
            (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name, text in (texts or {}).items():
            (draft / name).write_text(text)
        for extra in extra_files:
            shutil.copyfile(extra, draft / Path(extra).name)


def write_file(
    file: Path,
    tensors: Mapping[str, jax.Array | np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one safetensors file.

    Raises:
        CheckpointError: a tensor has a dtype that the format lacks.
    """
    for name, x in tensors.items():
        if jnp.dtype(x.dtype).name not in DTYPES.values():
            _fail(f"{file.name}, {name}", f"dtype {x.dtype}", ", ".join(DTYPES.values()))
    # The writer reads the memory behind each array as if it were row-major: make it so.
    whole = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    safetensors.numpy.save_file(whole, file, metadata={"format": "pt"} | dict(metadata or {}))


def split(
    tensors: Mapping[str, jax.Array | np.ndarray], limit: int
) -> Iterator[dict[str, jax.Array | np.ndarray]]:
    """The tensors in order, in shards of at most `limit` bytes (or one tensor)."""
    shard, size = {}, 0
    for name, x in tensors.items():
        if shard and size + x.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = x
        size += x.nbytes
    yield shard


def _indexed(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    try:
        where = json.loads(index.read_text())["weight_map"]
        shards = sorted({os.fspath(shard) for shard in where.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as cause:
        _fail(
            str(index), f"{type(cause).__name__}: {cause}", "a JSON object with a weight_map", cause
        )
    headers = {}
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            first = next(name for name, file in where.items() if file == shard)
            _fail(f"{folder / shard}, {first}", "no such shard", f"the file that {INDEX} lists")
        headers[shard] = header(folder / shard)
    for name, shard in where.items():
        if name not in headers[shard]:
            _fail(f"{folder / shard}, {name}", "no such tensor", f"the tensor that {INDEX} lists")
    return {name: headers[shard][name] for name, shard in where.items()}


def _ours(folder: Path) -> bool:
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _fail(path: str, got: str, expected: str, cause: BaseException | None = None) -> NoReturn:
    todo = "Restore the checkpoint from its source."
    raise CheckpointError(message(path=path, got=got, expected=expected, todo=todo)) from cause
