"""What usage says: how each weight of a function is used, in the dense weight's own dims."""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lrjax.formats.layout import Layout


class UseKind(enum.Enum):
    """What a function does with a weight."""

    DOT = "dot"
    LOOKUP = "lookup"
    CONV = "conv"
    ELEMENTWISE = "elementwise"
    OTHER = "other"


@dataclass(frozen=True)
class Use:
    """One use of a weight; `rows`, `cols` and `stack` are dims of the dense weight.

    rows   contracted, looked-up or convolved (spatial and input) dims, ascending
    cols   dims that appear in the output, ascending
    stack  batched, scanned or indexed dims: one matrix for each position
    tap    id of the distinct activation: uses that see the same values share it; "" if none is
           taken
    out    id of the output gradient's store: one for each weight and orientation; "" if none is
           taken
    """

    kind: UseKind
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    stack: tuple[int, ...]
    tap: str
    out: str
    shape: tuple[int, ...]
    primitive: str
    source: str


@dataclass(frozen=True)
class WeightUse:
    """All uses of one weight.

    layout  rows and columns by the first use that has them; None if no use says
    tied    used in two orientations (lookup and output head), or under two paths
    bias    path of the parameter that is added to the weight's output, if there is one
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout | None
    uses: tuple[Use, ...]
    tied: bool = False
    bias: str | None = None

    @property
    def matrix_uses(self) -> tuple[Use, ...]:
        """Uses that tap, one for each orientation: the layout's own first."""
        first: dict[tuple[str, str], Use] = {}
        for use in self.uses:
            if use.tap:
                first.setdefault((use.tap, use.out), use)
        return tuple(first.values())


class Usage(Mapping[str, WeightUse]):
    """Path -> WeightUse, for every parameter leaf, in tree order; prints as a table."""

    def __init__(self, weights: Mapping[str, WeightUse]):
        self._weights = dict(weights)

    def __getitem__(self, path: str) -> WeightUse:
        return self._weights[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __hash__(self) -> int:
        return hash(tuple(self._weights.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._weights == other._weights

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = ("weight", "shape", "use", "rows", "cols", "stack", "tap", "bias", "source")
        return _align([head, *(row for use in self.values() for row in _rows(use))])


def _rows(weight: WeightUse) -> list[tuple[str, ...]]:
    shape = "x".join(map(str, weight.shape)) or "scalar"
    rows = []
    for use in weight.uses:
        dims = (" ".join(map(str, d)) or "-" for d in (use.rows, use.cols, use.stack))
        rows.append(
            (
                use.kind.value,
                *dims,
                use.tap or "-",
                weight.bias or "-",
                use.source.rpartition("/")[2],
            )
        )
    rows = list(dict.fromkeys(rows)) or [("unused",) + ("-",) * 6]
    return [((weight.path, shape) if k == 0 else ("", "")) + row for k, row in enumerate(rows)]


def _align(table: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)
