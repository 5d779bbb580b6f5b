"""SHA-256 of files, folders and arrays."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def of_file(path: Path) -> str:
    """Digest of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_array(x: np.ndarray) -> str:
    """Digest of the elements of an array in row-major order, whatever its strides."""
    flat = np.asarray(x, order="C").reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()


def of_path(path: Path) -> str:
    """Digest of a file, or of the names and bytes of everything in a folder."""
    if path.is_file():
        return of_file(path)
    return of_texts(f"{name} {of_file(path / name)}" for name in files_in(path))


def of_texts(texts: Iterable[str]) -> str:
    """Digest of several texts, one a line."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def files_in(folder: Path) -> list[str]:
    """Every file under a folder, as sorted relative names with forward slashes."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
