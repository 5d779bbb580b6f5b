"""One tree in one folder with a manifest: what artefacts and statistics have in common."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from lrjax.errors import ArtefactError, DtypeError, ShapeError, message
from lrjax.io import codec, manifest, storage
from lrjax.io.atomic import new_folder
from lrjax.io.manifest import Json, Manifest
from lrjax.io.storage import Storage
from lrjax.trees import flatten, is_weight_leaf

SHARD_BYTES = 2 * 10**9
RESERVED = (manifest.NAME, storage.ORBAX_FOLDER)


def write(
    target: Path,
    kind: str,
    tree: Any,
    *,
    classes: Iterable[type] = (),
    content: Mapping[str, Json],
    format: Storage = Storage.SAFETENSORS,
    extra_files: Iterable[str | os.PathLike[str]] = (),
    overwrite: bool = False,
    allow_nan: bool = False,
) -> None:
    """Writes a tree with its manifest, whole or not at all.

    Raises:
        ArtefactError: the target exists, a leaf cannot be saved or is not finite, the disk refused.
    """
    encoded = codec.encode(tree, classes)
    if not allow_nan:
        _refuse_nan(encoded.tensors)
    extras = [Path(extra) for extra in extra_files]
    _refuse_names(extras)

    def replaceable(folder: Path) -> bool:
        return is_folder(folder, kind)

    with new_folder(target, overwrite=overwrite, replaceable=replaceable) as draft:
        storage.write(draft, encoded.tensors, format, SHARD_BYTES)
        for extra in extras:
            shutil.copyfile(extra, draft / extra.name)
        described = {
            **content,
            "storage": format.value,
            "weights": encoded.weights,
            "tree": encoded.tree,
        }
        manifest.build(draft, kind, described, encoded.tensors)


def read(folder: Path, kind: str, *, classes: Iterable[type]) -> tuple[Any, Manifest]:
    """The tree and the manifest of a folder, after every file and digest has been checked.

    Raises:
        ArtefactError: anything missing, extra, damaged or unknown, named by file and tensor.
    """
    known = codec.by_name(classes)
    said = manifest.read(folder, kind)
    try:
        manifest.check(folder, said)
        tensors = _tensors(folder, said)
        tree = codec.decode(said["tree"], tensors, known)
        _check_weights(folder, tree, said["weights"])
    except (KeyError, ValueError, TypeError, AttributeError, OSError) as cause:
        if isinstance(cause, ArtefactError):
            raise
        raise ArtefactError(
            message(
                path=str(folder),
                got=f"{type(cause).__name__}: {cause}",
                expected="a folder as its manifest describes it",
                todo="Use another copy.",
            )
        ) from cause
    return tree, said


def is_folder(folder: Path, kind: str) -> bool:
    """Whether a folder has a manifest of this kind, whole or not."""
    try:
        with open(folder / manifest.NAME, encoding="utf-8", errors="replace") as file:
            return f'"kind": "{kind}"' in file.read(200)
    except OSError:
        return False


def _tensors(folder: Path, said: Manifest) -> Mapping[str, jax.Array | np.ndarray]:
    kept = Storage(said["storage"])
    stored = storage.read(folder, kept)
    tensors = {}
    for name, entry in said["tensors"].items():
        if name in stored:
            tensors[name] = on_device(stored[name])
        else:  # orbax keeps no arrays without elements
            tensors[name] = on_device(np.zeros(entry["shape"], jnp.dtype(entry["dtype"])))
    return tensors


def on_device(x: np.ndarray) -> jax.Array | np.ndarray:
    """A JAX array, unless JAX would narrow it: 64 bits stay a NumPy array while x64 is off."""
    return jnp.asarray(x) if jax.dtypes.canonicalize_dtype(x.dtype) == x.dtype else x


def _check_weights(folder: Path, tree: Any, weights: Mapping[str, Json]) -> None:
    leaves = flatten(tree)[0] if weights else {}
    for path, said in weights.items():
        leaf = leaves.get(path)
        expected = f"a {said['class']} of shape {tuple(said['shape'])}, {said['dtype']}"
        if leaf is None:
            _fail(f"{folder}, {path}", "no such weight", expected)
        try:
            if is_weight_leaf(leaf):
                leaf.validate()
            shape, dtype = tuple(leaf.shape), jnp.dtype(leaf.dtype).name
        except (ShapeError, DtypeError) as cause:
            raise ArtefactError(f"{folder}, {path}: {cause}") from cause
        if (shape, dtype) != (tuple(said["shape"]), said["dtype"]):
            _fail(f"{folder}, {path}", f"shape {shape}, {dtype}", expected)


def _refuse_nan(tensors: Mapping[str, jax.Array | np.ndarray]) -> None:
    for name, x in tensors.items():
        if jnp.issubdtype(x.dtype, jnp.inexact):
            host = np.asarray(x)
            bad = int(np.count_nonzero(host != host))  # only NaN differs from itself
            if bad:
                raise ArtefactError(
                    message(
                        path=name,
                        got=f"{bad} NaN among {host.size} values",
                        expected="numbers",
                        todo="Find the solve that failed, or pass allow_nan=True.",
                    )
                )


def _refuse_names(extras: list[Path]) -> None:
    names: set[str] = set()
    for extra in extras:
        taken = extra.name in RESERVED or extra.name.startswith("weights") or extra.name in names
        if taken or not extra.is_file():
            raise ArtefactError(
                message(
                    path=str(extra),
                    got="a name that is taken" if taken else "no such file",
                    expected="files of different names, none of them the artefact's own",
                    todo="Rename the file, or leave it out.",
                )
            )
        names.add(extra.name)


def _fail(path: str, got: str, expected: str) -> NoReturn:
    raise ArtefactError(message(path=path, got=got, expected=expected, todo="Save it again."))
