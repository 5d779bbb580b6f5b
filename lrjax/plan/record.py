"""The plan: for every matched weight its format and rank, what it costs, and why."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from lrjax.decompose import Spec, spec_from_json
from lrjax.errors import ArtefactError, message
from lrjax.formats.layout import Layout
from lrjax.metrics import Kind, kind_from_json
from lrjax.plan.budget import Budget
from lrjax.plan.rivals import Rival
from lrjax.plan.table import bytes_text, shape_text, table

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """What becomes of one weight.

    Attributes:
        path: where the weight is in the tree.
        shape: its dense shape.
        dtype: its stored dtype.
        layout: which of its dims are rows and cols.
        spec: its format, rank fixed; None if it stays dense.
        kind: the metric it is factored under.
        params: parameters after compression; `bytes`, `flops` (per activation row) likewise.
        dense_params: parameters before; `dense_bytes`, `dense_flops` likewise.
        loss: predicted loss, in the metric's unit.
        total: loss of dropping the weight altogether, in the same unit.
        reason: why this choice.
        shared: path of the weight that this one is an alias of; it costs nothing then.
        candidate: which of the rule's candidates was chosen; -1 for staying dense.
        sensitivity: what its loss counted in the comparison; None if unmeasured, or dense.
        rivals: the candidates that were not chosen, and what each would have lost.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    spec: Spec | None
    kind: Kind
    params: int
    bytes: int
    flops: int
    dense_params: int
    dense_bytes: int
    dense_flops: int
    loss: float = 0.0
    total: float = 0.0
    reason: str = ""
    shared: str | None = None
    candidate: int = -1
    sensitivity: float | None = None
    rivals: tuple[Rival, ...] = ()

    @property
    def keep(self) -> float:
        """Parameters kept, as a share."""
        return self.params / self.dense_params if self.dense_params else 1.0

    @property
    def relative_loss(self) -> float:
        """Predicted loss relative to dropping the weight."""
        return self.loss / self.total if self.total > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data |= {"shape": list(self.shape), "kind": self.kind.to_json()}
        data["layout"] = {"rows": list(self.layout.rows), "cols": list(self.layout.cols)}
        data["spec"] = None if self.spec is None else self.spec.to_json()
        data["rivals"] = [rival.to_json() for rival in self.rivals]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The entry that `to_json` described."""
        layout = Layout(tuple(data["layout"]["rows"]), tuple(data["layout"]["cols"]))
        spec = None if data["spec"] is None else spec_from_json(data["spec"])
        kind = kind_from_json(data["kind"])
        new = {"shape": tuple(data["shape"]), "layout": layout, "spec": spec, "kind": kind}
        new["rivals"] = tuple(map(Rival.from_json, data.get("rivals", ())))
        return cls(**(dict(data) | new))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Entries for all matched weights, in tree order; frozen, hashable, prints as a table.

    Attributes:
        entries: one for each matched weight.
        budgets: glob and budget of each group.
        digest: of the statistics that the plan was made from.
    """

    entries: tuple[Entry, ...]
    budgets: tuple[tuple[str, Budget], ...] = ()
    digest: str | None = None

    def __getitem__(self, path: str) -> Entry:
        """The entry at `path`; KeyError if no rule matched it."""
        return self._index[path]

    def __contains__(self, path: str) -> bool:
        return path in self._index

    @functools.cached_property
    def _index(self) -> dict[str, Entry]:
        return {e.path: e for e in self.entries}

    @property
    def factored(self) -> tuple[Entry, ...]:
        """Entries of the weights that are factored."""
        return tuple(e for e in self.entries if e.spec is not None)

    @property
    def keep(self) -> float:
        """Parameters kept, as a share of all matched weights' parameters."""
        return self._sum("params") / max(self._sum("dense_params"), 1)

    def _sum(self, field: str) -> int:
        return sum(getattr(e, field) for e in self.entries)

    def __str__(self) -> str:
        head = ("path", "shape", "format", "rank", "keep", "bytes", "loss", "reason")
        rows = [_row(e) for e in self.entries]
        dense, kept = self._sum("dense_bytes"), self._sum("bytes")
        rows.append(
            (
                "total",
                f"{len(self.entries)} weights",
                f"{len(self.factored)} factored",
                "",
                f"{self.keep:.3f}",
                bytes_text(kept),
                "",
                f"dense {bytes_text(dense)}",
            )
        )
        return table(head, rows, left=("path", "shape", "format", "reason"))

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return {
            "version": VERSION,
            "budgets": [{"glob": g, **b.to_json()} for g, b in self.budgets],
            "digest": self.digest,
            "entries": [e.to_json() for e in self.entries],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The plan that `to_json` described.

        Raises:
            ArtefactError: the object is no plan, or of another version.
        """
        if data.get("version") != VERSION:
            raise ArtefactError(
                message(
                    got=f"a plan of version {data.get('version')!r}",
                    expected=f"version {VERSION}",
                    todo="Make the plan again with this version of lrjax.",
                )
            )
        try:
            budgets = [dict(b) for b in data["budgets"]]
            entries = tuple(Entry.from_json(e) for e in data["entries"])
            pairs = tuple((b.pop("glob"), Budget(**b)) for b in budgets)
            return cls(entries, pairs, data["digest"])
        except (KeyError, TypeError, AttributeError) as e:
            raise ArtefactError(
                message(
                    got=f"an incomplete plan ({type(e).__name__}: {e})",
                    expected="the JSON that Plan.to_json makes",
                    todo="Make the plan again.",
                )
            ) from e

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the plan as a JSON file, whole or not at all.

        Raises:
            FileExistsError: there is a file already, and `overwrite` is not set.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
        draft = path.with_name(path.name + ".draft")
        draft.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a plan that `save` wrote.

        Raises:
            ArtefactError: the file holds no plan.
        """
        try:
            data = json.loads(Path(path).read_text())
        except ValueError as e:
            todo = "Make the plan again."
            got = f"a file that is not JSON ({e})"
            raise ArtefactError(
                message(path=str(path), got=got, expected="a saved plan", todo=todo)
            ) from e
        return cls.from_json(data if isinstance(data, Mapping) else {})


def budget_text(budgets: Iterable[tuple[str, Budget]]) -> str:
    """Budgets in one line."""
    return ", ".join(f"{glob}: {budget}" for glob, budget in budgets)


def _row(e: Entry) -> tuple[str, ...]:
    name = "dense" if e.spec is None else type(e.spec).__name__
    rank = "" if e.spec is None else str(getattr(e.spec, "rank", ""))
    loss = f"{e.relative_loss:.2e}" if e.spec is not None else ""
    keep = f"{e.keep:.3f}" if not e.shared else ""
    return (e.path, shape_text(e.shape), name, rank, keep, bytes_text(e.bytes), loss, e.reason)
