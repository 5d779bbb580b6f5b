"""Results on stdout, as text or as one JSON object; progress on stderr."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any


def emit(result: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result as one JSON object, or the text."""
    out = json.dumps(plain(result), allow_nan=False) if as_json else text
    sys.stdout.write(f"{out}\n")


def plain(value: Any) -> Any:
    """The value as JSON has it: no number that is not finite, no NumPy scalar, no path."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under a head, the first `left` columns flush left, numbers flush right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def progress() -> AbstractContextManager[Any]:
    """A context whose value tells of stages, shown as bars on stderr."""
    from rich.console import Console

    from lrjax.demo import progress

    return progress(Console(stderr=True))


def shape_text(shape: Sequence[int]) -> str:
    """A shape as 3x4."""
    return "x".join(map(str, shape)) or "scalar"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
