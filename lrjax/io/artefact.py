"""A compressed model on disk: a folder that loads without the model it was made from."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrjax.io import codec, digest, folder
from lrjax.io.manifest import Json, Manifest
from lrjax.io.storage import Storage
from lrjax.plan import Plan

KIND = "lrjax artefact"


@dataclass(frozen=True)
class Artefact:
    """What a folder holds.

    Attributes:
        params: the parameter tree: nested dicts, lists and tuples of arrays and factored arrays.
        plan: the plan that it was made by, if one was saved.
        config: the model's configuration, if one was saved.
        manifest: everything else that was said about it.
        folder: where it lies; the copied files (tokenizer, ...) are there.
    """

    params: Any
    plan: Plan | None
    config: Mapping[str, Json] | None
    manifest: Manifest
    folder: Path

    @property
    def digest(self) -> str:
        """Digest of the manifest, hence of every tensor and file."""
        return self.manifest["digest"]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors and copied files on disk."""
        return sum(file["bytes"] for file in self.manifest["files"].values())


def save(
    path: str | os.PathLike[str],
    params: Any,
    *,
    plan: Plan | None = None,
    stats: Any = None,
    config: Mapping[str, Json] | None = None,
    source: str | os.PathLike[str] | None = None,
    extra_files: Iterable[str | os.PathLike[str]] = (),
    format: Storage = Storage.SAFETENSORS,
    overwrite: bool = False,
    allow_nan: bool = False,
) -> None:
    """Saves a parameter tree, dense or factored, as a folder; whole or not at all.

    Args:
        path: the folder; must not exist unless `overwrite`, which replaces only an artefact.
        params: nested dicts, lists and tuples of arrays and factored arrays. Frozen dicts, NNX
            states and modules are saved as nested dicts of the same paths; arrays that stand at
            several places are saved once and are one array again after loading.
        plan: saved with it.
        stats: the statistics it was made with; their digest is saved.
        config: the model's configuration, JSON.
        source: file or folder that it was made from; its name and digest are saved.
        extra_files: copied into the folder (config.json, tokenizer.json, licence).
        format: how the tensors are stored; `load` reads either.
        overwrite: let the folder replace an artefact that is there, in one step.
        allow_nan: save even where a weight holds NaN.

    Raises:
        ArtefactError: the folder exists, a leaf cannot be saved or holds NaN, or the disk refused.
    """
    origin = Path(source) if source is not None else None
    content = {
        "config": dict(config) if config is not None else None,
        "plan": plan.to_json() if plan is not None else None,
        "statistics": stats.digest() if stats is not None else None,
        "source": {"name": origin.name, "sha256": digest.of_path(origin)} if origin else None,
    }
    folder.write(
        Path(path),
        KIND,
        params,
        content=content,
        format=format,
        extra_files=extra_files,
        overwrite=overwrite,
        allow_nan=allow_nan,
    )


def load(path: str | os.PathLike[str], *, formats: Iterable[type] = ()) -> Artefact:
    """Loads what `save` wrote, bit-equal; nothing is used before all of it has been checked.

    Args:
        path: the folder.
        formats: your own classes of factored arrays among the weights.

    Raises:
        ArtefactError: not an artefact, an unknown schema version or class, a missing, extra,
            truncated or changed file or tensor; names file, tensor, what was expected and found.
    """
    where = Path(path)
    classes = (*codec.FORMATS, *formats)
    params, manifest = folder.read(where, KIND, classes=classes)
    plan = Plan.from_json(manifest["plan"]) if manifest["plan"] is not None else None
    return Artefact(params, plan, manifest["config"], manifest, where)


def is_artefact(path: str | os.PathLike[str]) -> bool:
    """Whether a folder says that it is an artefact; it may still be damaged."""
    return folder.is_folder(Path(path), KIND)
