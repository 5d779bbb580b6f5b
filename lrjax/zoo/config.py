"""A model's ``config.json``, read into a frozen dataclass and written back with nothing lost."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from flax.core import FrozenDict

from lrjax.errors import CheckpointError, message

C = TypeVar("C", bound="Config")
EXTENSION = "extension"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the zoo's configs: its fields bear the names of ``config.json``.

    Lists become tuples and objects become frozen ones, so that a config is hashable. What was read
    is carried in ``rest``, as JSON, and :meth:`to_json` writes it back, keys that no field reads
    included. ``aliases`` are other keys that published configs use for a field.
    """

    model_type: ClassVar[str] = ""
    aliases: ClassVar[Mapping[str, str]] = {}
    rest: str = dataclasses.field(default="{}", repr=False, compare=False)

    def __post_init__(self) -> None:
        for field in _fields(type(self)):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))

    @classmethod
    def from_json(cls: type[C], data: Mapping[str, Any]) -> C:
        """Reads the fields by name; a field without a default must be there.

        Raises:
            CheckpointError: a needed key is missing, or a value has the wrong type or is not
                supported.
        """
        if "quantization_config" in data:
            refuse("quantization_config", "quantised weights", "plain ones", "Dequantise first.")
        values, keys = {}, cls._keys(data)
        for field in _fields(cls):
            key = keys[field.name]
            if key in data:
                values[field.name] = _read(key, data[key], field.type)
            elif field.default is dataclasses.MISSING:
                todo = "Add the key that the published config of this model has."
                refuse(field.name, "nothing", "a value", todo)
        config = cls(**values, rest=json.dumps(dict(data)))
        config.check()
        return config

    @property
    def extensions(self) -> dict[str, Any]:
        """The fields that are set and that no published config has."""
        named = [f.name for f in _fields(type(self)) if f.metadata.get(EXTENSION)]
        return {k: v for k in named if (v := getattr(self, k)) is not None}

    @property
    def architectures(self) -> list[str] | None:
        """What the config that was read says of the model's class in the reference library."""
        return json.loads(self.rest).get("architectures")

    def check(self) -> None:
        """Refuses values that are of the right type, but that the model cannot honour.

        Raises:
            CheckpointError: there is such a value.
        """

    def to_json(self) -> dict[str, Any]:
        """The ``config.json`` of this model: what was read, and every field that differs."""
        read = json.loads(self.rest)
        written = {"model_type": self.model_type} if self.model_type else {}
        keys = self._keys(read)
        built = not set(keys.values()) & read.keys()
        for field in _fields(type(self)):
            key, value = keys[field.name], getattr(self, field.name)
            if key in read or value != field.default or (built and value is not None):
                written[key] = _thawed(value)
        return {**read, **written}

    @classmethod
    def _keys(cls, data: Mapping[str, Any]) -> dict[str, str]:
        """The key of every field in this config."""
        keys = {field.name: field.name for field in _fields(cls)}
        other = {name: alias for name, alias in cls.aliases.items() if alias in data}
        return keys | {name: alias for name, alias in other.items() if name not in data}


def extension() -> Any:
    """A field that no published config has: None is as published, and is not written."""
    return dataclasses.field(default=None, metadata={EXTENSION: True})


def refuse(key: str, got: object, expected: str, todo: str = "Correct the value.") -> NoReturn:
    """Raises the error of a config's key."""
    raise CheckpointError(
        message(path=f"config.json, {key}", got=got, expected=expected, todo=todo)
    )


def one_of(key: str, value: Any, known: Iterable[Any]) -> None:
    """Refuses a value that is not among those that the model knows."""
    known = tuple(known)
    if value not in known:
        todo = "Load a model that the zoo has, or run your own through lrjax.lift."
        refuse(key, repr(value), " or ".join(map(repr, known)), todo)


def divides(key: str, value: int, whole: str, size: int) -> None:
    """Refuses a count that does not divide a size."""
    if value < 1 or size % value:
        refuse(key, value, f"a divisor of {whole} {size}")


@functools.cache
def _fields(cls: type[Config]) -> tuple[Any, ...]:
    return tuple(f for f in dataclasses.fields(cls) if f.name != "rest")


def _read(name: str, value: Any, kind: Any) -> Any:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if not any(_fits(value, k) for k in kinds):
        refuse(name, repr(value), " or ".join(getattr(k, "__name__", str(k)) for k in kinds))
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and float in kinds and int not in kinds else _frozen(value)


def _fits(value: Any, kind: Any) -> bool:
    kind = typing.get_origin(kind) or kind
    if isinstance(value, bool) or not isinstance(kind, type):
        return kind is bool or not isinstance(kind, type)
    if kind is float:
        return isinstance(value, int | float)
    if kind is tuple:
        return isinstance(value, list | tuple)
    return isinstance(value, kind)


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return FrozenDict({k: _frozen(v) for k, v in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _thawed(v) for k, v in value.items()}
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
