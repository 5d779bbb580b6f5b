"""PATH to parameters: artefacts, published checkpoints, bare safetensors, orbax folders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrjax.errors import CheckpointError, message

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentence_bert_config.json",
    "LICENSE",
)
"""Files that travel with the weights when there."""


@dataclass(frozen=True)
class Source:
    """What was found at a path.

    Attributes:
        path: the path.
        kind: "artefact", "checkpoint", "safetensors" or "orbax".
        params: the parameter tree.
        config: the content of config.json, if there is one.
        model: the zoo's model, if the config is of one.
    """

    path: Path
    kind: str
    params: Any
    config: Mapping[str, Any] | None = None
    model: Any = None

    @property
    def encoder(self) -> Any:
        """The model, if it gives the hidden states of texts; else None."""
        from lrjax import zoo

        return self.model if isinstance(self.model, zoo.Bert | zoo.Albert) else None

    @property
    def companions(self) -> list[Path]:
        """Tokenizer, config and licence files beside the weights."""
        folder = self.path if self.path.is_dir() else self.path.parent
        return [folder / name for name in COMPANIONS if (folder / name).is_file()]

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file, or of everything in the folder."""
        return disk_bytes(self.path)


def read(path: Path) -> Source:
    """Reads whatever is at `path`.

    Raises:
        CheckpointError: nothing is, or nothing that is known, or it is damaged.
        ArtefactError: an artefact that is damaged.
    """
    from lrjax import io
    from lrjax.io import orbax

    if path.is_dir():
        if (path / "manifest.json").exists() or any(path.glob("weights*.safetensors")):
            return _artefact(path)
        if (path / "config.json").exists():
            return _published(path)
        for folder in (path, path / "default", path / "params", path / "state"):
            if orbax.is_folder(folder):
                return Source(path, "orbax", _on_device(orbax.read(folder)))
    elif path.exists() and path.suffix != ".safetensors":
        raise CheckpointError(
            message(
                path=str(path),
                got=f"a file {path.suffix or 'without suffix'}",
                expected="a folder or a .safetensors file",
                todo="Convert the weights to safetensors first.",
            )
        )
    return Source(path, "safetensors", _on_device(nest(io.hf.read(path))))


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def nest(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names to nested dicts: split at slashes, or at dots where no name has a slash.

    Names that would be both a leaf and a branch stay flat, all of them.
    """
    separator = "/" if any("/" in name for name in tensors) else "."
    tree: dict[str, Any] = {}
    for name in tensors:
        *branches, leaf = name.split(separator)
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                return dict(tensors)
        if leaf in node:
            return dict(tensors)
        node[leaf] = tensors[name]
    return tree


def _artefact(path: Path) -> Source:
    from lrjax import io, zoo

    artefact = io.load(path)
    config = artefact.config or _config(path)
    model = zoo.model_of(config, artefact.params) if config else None
    return Source(path, "artefact", artefact.params, config, model)


def _published(path: Path) -> Source:
    from lrjax import zoo

    model, params = zoo.load(path)
    return Source(path, "checkpoint", params, _config(path), model)


def _config(path: Path) -> Mapping[str, Any] | None:
    import json

    file = path / "config.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _on_device(tree: Any) -> Any:
    """Arrays as JAX arrays, but for 64-bit ones, which JAX would narrow."""
    import jax

    from lrjax.io.folder import on_device

    return jax.tree.map(on_device, tree)
