"""A model's ``config.json``, read into a frozen dataclass and written back with nothing lost."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from lrjax.errors import CheckpointError, message

C = TypeVar("C", bound="Config")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the zoo's configs: its fields bear the names of ``config.json``.

    Keys that no field reads are carried in ``rest`` (as JSON, so that a config stays hashable) and
    written back by :meth:`to_json`.
    """

    rest: str = dataclasses.field(default="{}", repr=False, compare=False)

    @classmethod
    def from_json(cls: type[C], data: Mapping[str, Any]) -> C:
        """Reads the fields by name; a field without a default must be there.

        Raises:
            CheckpointError: a needed key is missing, or a value has the wrong type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "rest"}
        for name, field in fields.items():
            needed = field.default is dataclasses.MISSING
            if name not in data and needed:
                raise CheckpointError(
                    message(
                        path=f"config.json, {name}",
                        got="nothing",
                        expected="a value",
                        todo="Add the key that the published config of this model has.",
                    )
                )
            if name in data and not _fits(data[name], field.type):
                raise CheckpointError(
                    message(
                        path=f"config.json, {name}",
                        got=repr(data[name]),
                        expected=getattr(field.type, "__name__", str(field.type)),
                        todo="Correct the value.",
                    )
                )
        rest = {k: v for k, v in data.items() if k not in fields}
        known = {k: v for k, v in data.items() if k in fields}
        return cls(**known, rest=json.dumps(rest))

    def to_json(self) -> dict[str, Any]:
        """The ``config.json`` of this model: the fields, and what was read beside them."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["rest"]
        return {**json.loads(self.rest), **fields}


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool) or not isinstance(kind, type):
        return kind is bool or not isinstance(kind, type)
    return isinstance(value, (int, float) if kind is float else kind)
