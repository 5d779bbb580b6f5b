"""manifest.json: what an artefact holds, and the checks that it holds just that."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from lrjax.errors import ArtefactError, message
from lrjax.io import atomic, digest, storage
from lrjax.io.storage import Storage

NAME = "manifest.json"
SCHEMA = 1
LIBRARIES = ("lrjax", "jax", "flax", "numpy", "safetensors", "orbax-checkpoint")

Json = Any
Manifest = dict[str, Json]
Array = jax.Array | np.ndarray


def build(
    folder: Path, kind: str, content: Mapping[str, Json], tensors: Mapping[str, Array]
) -> None:
    """Describes the files and tensors of a folder, and writes the manifest into it, last of all."""
    manifest: Manifest = {
        "kind": kind,
        "schema": SCHEMA,
        "versions": versions(),
        **content,
        "tensors": {
            name: {
                "shape": list(x.shape),
                "dtype": x.dtype.name,
                "sha256": digest.of_array(np.asarray(x)),
            }
            for name, x in tensors.items()
        },
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest.of_file(folder / name)}
            for name in digest.files_in(folder)
        },
    }
    manifest["digest"] = own_digest(manifest)
    (folder / NAME).write_text(_text(manifest), encoding="utf-8")


def own_digest(manifest: Manifest) -> str:
    """Digest of everything the manifest says but its own digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return digest.of_texts([json.dumps(rest, sort_keys=True, separators=(",", ":"))])


def _text(manifest: Manifest) -> str:
    """JSON with one line for each weight, tensor and file."""

    def line(key: str, value: Json, indent: str) -> str:
        return f"{indent}{json.dumps(key)}: {json.dumps(value, allow_nan=False)}"

    lines = []
    for key, value in manifest.items():
        if isinstance(value, dict) and len(value) > 1:
            inner = ",\n".join(line(k, v, "  ") for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(line(key, value, " "))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that matter to what is on disk."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def read(folder: Path, kind: str) -> Manifest:
    """The manifest of a folder, itself whole and of a version that is understood.

    Raises:
        ArtefactError: no folder, no manifest, not JSON, another kind, schema or digest.
    """
    file = folder / NAME
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as cause:
        _unreadable(folder, kind, cause)
    except UnicodeDecodeError as cause:
        _fail(file, "bytes that are not text", "JSON", "It is damaged: use another copy.", cause)
    try:
        manifest = json.loads(text)
    except ValueError as cause:
        _fail(
            file,
            f"broken JSON ({cause})",
            "a whole manifest",
            "It is damaged: use another copy.",
            cause,
        )
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        got = manifest.get("kind") if isinstance(manifest, dict) else None
        _fail(file, f"kind {got!r}", repr(kind), "Give a folder that lrjax saved.")
    if manifest.get("schema") != SCHEMA:
        todo = "Use the version of lrjax that wrote it."
        _fail(file, f"schema version {manifest.get('schema')!r}", f"version {SCHEMA}", todo)
    if manifest.get("digest") != own_digest(manifest):
        got = f"content of digest {own_digest(manifest)}"
        _fail(file, got, f"{manifest.get('digest')}", "It was edited or damaged: use another copy.")
    return manifest


def check(folder: Path, manifest: Manifest) -> None:
    """Compares a folder with its manifest: every file, every tensor, every digest.

    Raises:
        ArtefactError: names the file and tensor, what was expected and what was found.
    """
    kept = Storage(manifest["storage"])
    _check_presence(folder, manifest["files"])
    if kept is Storage.ORBAX:  # many small files, opened only once they are known to be whole
        _check_files(folder, manifest, None)
        _check_header(folder, manifest["tensors"], storage.header(folder, kept), kept)
        return
    damage: ArtefactError | None = None
    try:  # a safetensors header says which tensor is missing or odd, a digest only that one is
        _check_header(folder, manifest["tensors"], storage.header(folder, kept), kept)
    except ArtefactError as cause:
        if cause.__cause__ is None:
            raise
        damage = cause  # it could not be read: the file's size and digest say more
    _check_files(folder, manifest, damage)
    if damage is not None:
        raise damage


def _check_presence(folder: Path, files: Mapping[str, Json]) -> None:
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            _fail(folder / NAME, f"a file {name!r}", "a name inside the folder", "Do not load it.")
        if not (folder / name).is_file():
            _fail(folder / name, "no such file", "the file the manifest lists", "Use another copy.")
    tensors = folder / storage.ORBAX_FOLDER
    for name in digest.files_in(tensors) if tensors.is_dir() else ():
        if f"{tensors.name}/{name}" not in files:
            _fail(tensors / name, "a file", "only files the manifest lists", "Use another copy.")


def _check_files(folder: Path, manifest: Manifest, damage: ArtefactError | None) -> None:
    for name, said in manifest["files"].items():
        size = (folder / name).stat().st_size
        if size != said["bytes"]:
            where = f"{folder / name}{_culprit(folder, manifest)}"
            todo = "The file was cut short or replaced: use another copy."
            _fail(where, f"{size} bytes", f"{said['bytes']} bytes", todo, damage)
        found = digest.of_file(folder / name)
        if found != said["sha256"]:
            where = f"{folder / name}{_culprit(folder, manifest)}"
            todo = "The file was changed: use another copy."
            _fail(where, f"sha256 {found}", said["sha256"], todo, damage)


def _check_header(
    folder: Path, said: Mapping[str, Json], found: storage.Header, kept: Storage
) -> None:
    for name, entry in said.items():
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if kept is Storage.ORBAX and 0 in shape:
            continue
        if name not in found:
            _fail(
                f"{folder}, {name}",
                "no such tensor",
                f"shape {shape}, {dtype}",
                "Use another copy.",
            )
        if found[name] != (shape, dtype):
            got = f"shape {found[name][0]}, {found[name][1]}"
            _fail(f"{folder}, {name}", got, f"shape {shape}, {dtype}", "Use another copy.")
    for name in found:
        if name not in said:
            got = f"a tensor of shape {found[name][0]}"
            _fail(
                f"{folder}, {name}", got, "only the tensors the manifest lists", "Use another copy."
            )


def _culprit(folder: Path, manifest: Manifest) -> str:
    """Which tensors of a safetensors file differ, as text for a path; else empty."""
    if Storage(manifest["storage"]) is not Storage.SAFETENSORS:
        return ""
    try:
        tensors = storage.read(folder, Storage.SAFETENSORS)
        wrong = [
            name
            for name, said in manifest["tensors"].items()
            if digest.of_array(tensors[name]) != said["sha256"]
        ]
    except ArtefactError:
        return ""
    return f", {', '.join(wrong[:3])}" if wrong else ""


def _unreadable(folder: Path, kind: str, cause: OSError) -> NoReturn:
    left = atomic.interrupted(folder)
    if not folder.exists():
        got, todo = "no such folder", "Check the path."
        former = [p for p in left if atomic.FORMER in p.name]
        if former:
            todo = (
                f"An interrupted overwrite left the former one as {former[0].name}: rename it back."
            )
        elif left:
            todo = f"An interrupted save left {left[0].name}: save again."
    elif not folder.is_dir():
        got, todo = "a file", "Give the folder."
    elif isinstance(cause, FileNotFoundError):
        whole = any(folder.glob("weights*.safetensors")) or (folder / storage.ORBAX_FOLDER).is_dir()
        got = f"no {NAME}" + (" beside the weights: half-written" if whole else "")
        todo = "Save it again." if whole else f"Give a folder that lrjax saved ({kind})."
    else:
        got, todo = cause.strerror or str(cause), "Check the permissions."
    _fail(folder, got, f"a folder with {NAME}", todo, cause)


def _fail(
    path: object, got: str, expected: str, todo: str, cause: BaseException | None = None
) -> NoReturn:
    raise ArtefactError(message(path=str(path), got=got, expected=expected, todo=todo)) from cause
