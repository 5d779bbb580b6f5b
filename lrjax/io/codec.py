"""A tree as JSON and named tensors, and back, without the code that made the tree.

Every node is a JSON scalar or an object with one key that says what it is:
`dict`, `items` (a mapping whose keys are not all text), `list`, `tuple`, `tensor`, `dtype`,
`enum`, `float` (one that is not finite), or `class` with `fields` beside it. A class is a frozen
dataclass known by its bare name; nothing on disk is ever executed or imported.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr

from lrjax.errors import ArtefactError, message
from lrjax.formats import (
    BLAST,
    CP,
    HODLR,
    HSS,
    Banded,
    BlockLowRank,
    Diagonal,
    Kronecker,
    LowRank,
    Monarch,
    Permuted,
    SharedBasis,
    Sparse,
    Sum,
    TensorRing,
    TensorTrain,
    TokenTrain,
    Tucker,
)
from lrjax.trees import is_weight_leaf

FORMATS: tuple[type, ...] = (
    LowRank,
    SharedBasis,
    Sum,
    Diagonal,
    Sparse,
    CP,
    Kronecker,
    TensorTrain,
    TensorRing,
    TokenTrain,
    Tucker,
    BlockLowRank,
    Monarch,
    BLAST,
    HODLR,
    HSS,
    Permuted,
    Banded,
)
"""The classes that load by name; a new format joins here."""

Json = Any
Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tree taken apart.

    Attributes:
        tree: the structure, as JSON.
        tensors: every array by name.
        weights: class, dense shape and dtype by path.
    """

    tree: Json
    tensors: dict[str, Array]
    weights: dict[str, dict[str, Json]]


def by_name(classes: Iterable[type]) -> dict[str, type]:
    """The classes by bare name.

    Raises:
        ArtefactError: two different classes have one name.
    """
    named: dict[str, type] = {}
    for cls in classes:
        if named.setdefault(cls.__name__, cls) is not cls:
            raise ArtefactError(
                message(
                    got=f"two classes called {cls.__name__}",
                    expected="one class a name",
                    todo="Rename one of the formats.",
                )
            )
    return named


def encode(tree: Any, classes: Iterable[type] = ()) -> Encoded:
    """Takes a tree of arrays and factored arrays apart.

    Frozen dicts, NNX states, modules and boxes become plain nested dicts of the same paths; an
    array that stands at several places is stored once.

    Raises:
        ArtefactError: a leaf is not an array, or a class is no dataclass, named by path.
    """
    encoder = _Encoder(tuple(classes))
    return Encoded(encoder.node(tree, "", top=True), encoder.tensors, encoder.weights)


def decode(tree: Json, tensors: Mapping[str, Array], classes: Mapping[str, type]) -> Any:
    """Puts a tree together again from what `encode` made of it.

    Raises:
        ArtefactError: a class is not among `classes`, or the JSON is not of this form.
    """
    return _decode(tree, tensors, classes, "")


def join(path: str, key: object) -> str:
    """The path of a child."""
    return f"{path}/{key}" if path else str(key)


class _Encoder:
    def __init__(self, classes: tuple[type, ...]):
        self.classes = classes
        self.tensors: dict[str, Array] = {}
        self.weights: dict[str, dict[str, Json]] = {}
        self.names: dict[int, str] = {}

    def node(self, x: Any, path: str, *, top: bool) -> Json:
        """Encodes `x`; `top` while still outside every factored array."""
        if x is None or type(x) in (bool, int, str):
            return x
        if type(x) is float:
            return x if math.isfinite(x) else {"float": repr(x)}
        if isinstance(x, np.generic) and not top:
            return self.node(x.item(), path, top=False)
        if isinstance(x, jax.Array | np.ndarray | np.generic):
            return {"tensor": self.tensor(x, path, top)}
        if isinstance(x, enum.Enum):
            return {"enum": type(x).__name__, "name": x.name}
        if isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic)):
            return {"dtype": jnp.dtype(x).name}
        if is_weight_leaf(x) or isinstance(x, self.classes):
            return self.dataclass(x, path, top)
        if isinstance(x, Mapping):  # dict, FrozenDict, nnx.State
            children = {key: self.node(v, join(path, key), top=top) for key, v in x.items()}
            return self.mapping(children, path)
        if isinstance(x, tuple | list):
            children = [self.node(v, join(path, i), top=top) for i, v in enumerate(x)]
            return {"tuple" if isinstance(x, tuple) else "list": children}
        return self.other(x, path, top)

    def mapping(self, children: Mapping[Any, Json], path: str) -> Json:
        if all(type(key) is str for key in children):
            return {"dict": dict(children)}
        if all(type(key) is int for key in children):
            return {"items": [[key, node] for key, node in children.items()]}
        kinds = sorted({type(key).__name__ for key in children})
        raise _cannot(path, f"keys of type {' and '.join(kinds)}", "Use text or integers as keys.")

    def tensor(self, x: Any, path: str, top: bool) -> str:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            raise _cannot(path, "a typed random key", "Save jax.random.key_data(key) in its place.")
        if x.dtype == object:
            raise _cannot(path, "an array of Python objects", "Save numbers.")
        name = self.names.setdefault(id(x), path)
        if name == path:
            if name in self.tensors:
                raise _cannot(path, "two arrays of this path", "Rename one of the tree's keys.")
            self.tensors[name] = x
        if top:
            self.weights[path] = {"class": "Array", "shape": list(x.shape), "dtype": x.dtype.name}
        return name

    def dataclass(self, x: Any, path: str, top: bool) -> Json:
        cls = type(x)
        if not dataclasses.is_dataclass(cls):
            raise _cannot(
                path, f"a {cls.__name__} that is no dataclass", "Make it a frozen dataclass."
            )
        if top and is_weight_leaf(x):
            self.weights[path] = {
                "class": cls.__name__,
                "shape": list(x.shape),
                "dtype": jnp.dtype(x.dtype).name,
            }
            top = False
        fields = [f.name for f in dataclasses.fields(cls) if f.init]
        return {
            "class": cls.__name__,
            "fields": {f: self.node(getattr(x, f), join(path, f), top=top) for f in fields},
        }

    def other(self, x: Any, path: str, top: bool) -> Json:
        """Any other pytree node by its keys; a box with the one child `value` is looked through."""
        entries, _ = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
        if len(entries) == 1 and entries[0][1] is x:
            todo = "Save a tree of arrays, for instance equinox.filter(model, equinox.is_array)."
            raise _cannot(path, f"a {type(x).__name__}", todo)
        if len(entries) == 1 and entries[0][0] == (GetAttrKey("value"),):
            return self.node(entries[0][1], path, top=top)
        keys = [keystr(key, simple=True, separator="/") for key, _ in entries]
        return {
            "dict": {
                key: self.node(child, join(path, key), top=top)
                for key, (_, child) in zip(keys, entries, strict=True)
            }
        }


def _decode(
    node: Json, tensors: Mapping[str, Array], classes: Mapping[str, type], path: str
) -> Any:
    if not isinstance(node, dict):
        return node

    def child(key: object, value: Json) -> Any:
        return _decode(value, tensors, classes, join(path, key))

    match node:
        case {"tensor": name} if name in tensors:
            return tensors[name]
        case {"dict": children}:
            return {key: child(key, value) for key, value in children.items()}
        case {"items": children}:
            return {key: child(key, value) for key, value in children}
        case {"list": children}:
            return [child(i, value) for i, value in enumerate(children)]
        case {"tuple": children}:
            return tuple(child(i, value) for i, value in enumerate(children))
        case {"class": name, "fields": fields}:
            cls = _known(name, classes, path)
            values = {key: child(key, value) for key, value in fields.items()}
            try:
                return cls(**values)
            except TypeError as cause:
                got = f"fields {sorted(values)}"
                todo = f"Use the version of {name} that wrote the artefact."
                expected = f"the fields of {name}: {cause}"
                raise ArtefactError(
                    message(path=path, got=got, expected=expected, todo=todo)
                ) from cause
        case {"enum": name, "name": member}:
            return _known(name, classes, path)[member]  # pyright: ignore[reportIndexIssue]
        case {"dtype": name}:
            return jnp.dtype(name)
        case {"float": text}:
            return float(text)
    todo = "The manifest was edited or written by another program: save the artefact again."
    raise ArtefactError(
        message(path=path, got=f"a node {node!r:.80}", expected="a known one", todo=todo)
    )


def _known(name: str, classes: Mapping[str, type], path: str) -> Any:
    if name in classes:
        return classes[name]
    raise ArtefactError(
        message(
            path=path,
            got=f"a {name}",
            expected=f"one of {', '.join(sorted(classes))}",
            todo=f"Load with formats=({name},).",
        )
    )


def _cannot(path: str, got: str, todo: str) -> ArtefactError:
    return ArtefactError(message(path=path, got=got, expected="something to save", todo=todo))
