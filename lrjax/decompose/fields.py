"""What the fields of a spec may hold: what their annotations say, and no negative number."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

from lrjax.errors import RankError, message

SIZES = {"modes", "digits", "rows", "cols", "grid", "shape", "group", "tile", "count", "starts"}
POSITIVE = SIZES | {"ratio"}
"""Fields in which zero has no meaning either; a rank of zero has, in some formats."""


def check_fields(spec: Any) -> None:
    """Check the fields of a spec.

    Raises:
      RankError: a value is not of the field's type, is negative, or is not finite.
    """
    indices = {f.name for f in dataclasses.fields(spec) if f.metadata.get("indices")}
    for name, hint in _hints(type(spec)).items():
        value = getattr(spec, name)
        if not _is_a(value, hint):
            raise _wrong(spec, name, value, _name(hint))
        sign, least = (
            ("positive", 0) if name in POSITIVE - indices else ("non-negative", -math.ulp(0))
        )
        if not all(math.isfinite(x) and x > least for x in _numbers(value)):
            raise _wrong(spec, name, value, f"{sign} numbers")


def _wrong(spec: Any, name: str, value: Any, expected: str) -> RankError:
    got = f"{type(spec).__name__}({name}={value!r})"
    return RankError(message(got=got, expected=expected, todo="Correct the field."))


@functools.lru_cache(256)
def _hints(cls: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a class of the user's own, whose annotations are not in reach
        return {}
    return {name: hint for name, hint in hints.items() if name in cls.__dataclass_fields__}


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value is what a hint of plain classes, unions and tuples says."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, each) for each in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(each) and all(map(_is_a, value, each))
    if hint in (int, float):
        numbers = (int, np.integer) if hint is int else (int, float, np.number)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        yield value


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("lrjax.", "")
