"""Orbax checkpoints of plain arrays, read without knowing their structure beforehand.

Orbax takes longer to import than the rest of lrjax together, so it is imported when first used.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrjax.errors import CheckpointError, message

Array = jax.Array | np.ndarray


def is_folder(path: Path) -> bool:
    """Whether a folder is an orbax checkpoint of one tree."""
    return (path / "_METADATA").is_file()


def write(folder: Path, tensors: Mapping[str, Array]) -> None:
    """Writes tensors as one flat tree of their names.

    Orbax has no arrays without elements; they are left out.

    Raises:
        CheckpointError: orbax refused.
    """
    full = {name: x for name, x in tensors.items() if x.size}
    with _checkpointer(folder, "arrays that orbax can write") as checkpointer:
        checkpointer.save(folder.resolve(), full or {"": np.zeros(1)})


def header(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype by name of what `write` wrote.

    Raises:
        CheckpointError: not an orbax folder, or a damaged one.
    """
    with _checkpointer(folder, "an orbax checkpoint") as checkpointer:
        tree = _metadata(checkpointer, folder)
        return {str(k): (tuple(x.shape), np.dtype(x.dtype).name) for k, x in tree.items() if k}


def read(folder: Path) -> Any:
    """The tree of a checkpoint, as nested dicts and lists of NumPy arrays.

    Raises:
        CheckpointError: not an orbax folder, or a damaged one.
    """
    import orbax.checkpoint as ocp

    with _checkpointer(folder, "an orbax checkpoint") as checkpointer:
        tree = _metadata(checkpointer, folder)
        host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(folder.resolve(), restore_args=host)


def read_flat(folder: Path) -> dict[str, np.ndarray]:
    """The tensors that `write` wrote, by name.

    Raises:
        CheckpointError: not an orbax folder, or a damaged one.
    """
    return {name: x for name, x in read(folder).items() if name}


def _metadata(checkpointer: Any, folder: Path) -> Any:
    return checkpointer.metadata(folder.resolve()).item_metadata.tree


@contextmanager
def _checkpointer(folder: Path, expected: str) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            yield checkpointer
    except Exception as cause:  # orbax and tensorstore raise whatever the layer below did
        first = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        todo = "Restore the checkpoint from its source."
        got = f"{type(cause).__name__}: {first:.200}"
        raise CheckpointError(
            message(path=str(folder), got=got, expected=expected, todo=todo)
        ) from cause
