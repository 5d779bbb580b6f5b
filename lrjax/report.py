"""`report`: what compression did to every weight, measured, and to the tree as a whole."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrjax import trees
from lrjax.calibrate import Stats
from lrjax.errors import ShapeError, message
from lrjax.formats import LowRank, Sum, is_factored
from lrjax.formats.layout import Layout, default_layout, matricize
from lrjax.lift import UseKind
from lrjax.metrics import Frobenius, Kind, Metric, default_kind
from lrjax.ops import cost, densify
from lrjax.plan.binding import bind, tokens_of
from lrjax.plan.record import Plan
from lrjax.plan.table import bytes_text, shape_text, table
from lrjax.trees import Tree

SLACK = 0.02
"""A loss within this share of the optimum's is called optimal: the solvers' own tolerance."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One factored (or planned) weight.

    Attributes:
        path: where it is.
        shape: dense shape.
        format: class of the factored weight, or "dense".
        ranks: its rank or ranks.
        params: parameters; likewise `bytes` and `flops` (per activation row).
        dense_params: parameters of the dense weight; likewise `dense_bytes`, `dense_flops`.
        metric: what the error means.
        error: measured loss of the stored factors, relative to dropping the weight.
        optimum: least relative loss of any weight of this rank (tail of the calibrated spectrum);
            None where the theory gives none.
        status: the verdict in words.
        shared: path of the weight that this one is an alias of; it counts for nothing then.
    """

    path: str
    shape: tuple[int, ...]
    format: str
    ranks: tuple[int, ...]
    params: int
    bytes: int
    flops: int
    dense_params: int
    dense_bytes: int
    dense_flops: int
    metric: str
    error: float
    optimum: float | None
    status: str
    shared: str | None = None

    @property
    def slack(self) -> float | None:
        """By how much the error exceeds the optimum, as a share of the loss of dropping all."""
        return None if self.optimum is None else max(self.error - self.optimum, 0.0)


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the whole tree, aliases counted once; FLOPs over the weights that have a row."""

    params: int
    bytes: int
    flops: int
    dense_params: int
    dense_bytes: int
    dense_flops: int

    @property
    def keep(self) -> float:
        """Parameters kept of the whole tree."""
        return self.params / max(self.dense_params, 1)


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows of the factored and planned weights, and totals of the tree; prints as a table."""

    rows: tuple[Row, ...]
    totals: Totals

    def __getitem__(self, path: str) -> Row:
        """The row at `path`."""
        return {row.path: row for row in self.rows}[path]

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        rows = [dataclasses.asdict(row) | {"slack": row.slack} for row in self.rows]
        return {
            "rows": rows,
            "totals": dataclasses.asdict(self.totals) | {"keep": self.totals.keep},
        }

    def __str__(self) -> str:
        head = ("path", "shape", "format", "rank", "params", "bytes", "flops", "error", "optimum")
        lines = [_line(row) for row in self.rows]
        t = self.totals
        lines.append(_total_line("all, before", t.dense_params, t.dense_bytes, t.dense_flops))
        lines.append(_total_line("all, after", t.params, t.bytes, t.flops))
        left = ("path", "shape", "format", "status")
        return table((*head, "status"), lines, left=left)


def report(
    params: Tree, factored: Tree, stats: Stats | None = None, plan: Plan | None = None
) -> Report:
    """Measure a compressed tree against the dense one: costs, true errors, certificates.

    Errors are computed anew from the stored factors: loss(W - W') / loss(W) in the plan's metric,
    else in the one that the statistics allow. For low rank the certificate is the optimum's loss, a
    tail of the calibrated spectrum.

    Raises:
        ShapeError: the two trees do not hold the same weights.
    """
    before, _ = trees.flatten(params)
    after, _ = trees.flatten(factored)
    _check(before, after)
    alias = trees.shared(params) | trees.shared(factored)
    alias |= {e.path: e.shared for e in (plan.entries if plan else ()) if e.shared}
    listed = [p for p, w in after.items() if is_factored(w) or (plan is not None and p in plan)]
    rows = tuple(_row(p, before[p], after[p], alias.get(p), stats, plan) for p in listed)
    once = [p for p in after if p not in alias]
    size = lambda tree, field: sum(getattr(cost(tree[p]), field) for p in once)
    flops = lambda field: sum(getattr(row, field) for row in rows)
    totals = Totals(
        size(after, "params"),
        size(after, "bytes"),
        flops("flops"),
        size(before, "params"),
        size(before, "bytes"),
        flops("dense_flops"),
    )
    return Report(rows, totals)


def _check(before: dict[str, Any], after: dict[str, Any]) -> None:
    odd = next(iter(sorted(set(before) ^ set(after))), None)
    wrong = odd or next((p for p in before if np.shape(before[p]) != tuple(after[p].shape)), None)
    if wrong is not None:
        got = f"shapes {[tuple(t[wrong].shape) for t in (before, after) if wrong in t]}"
        raise ShapeError(
            message(
                path=wrong,
                got=got,
                expected="one weight of one shape in both trees",
                todo="Pass the dense parameters and their own compressed tree.",
            )
        )


def _row(
    path: str, w: Any, new: Any, shared: str | None, stats: Stats | None, plan: Plan | None
) -> Row:
    layout, kind, lookup = _view(path, w, new, stats, plan)
    dense, kept = cost(w, layout=layout), cost(new, layout=layout)
    error, optimum = 0.0, None
    if is_factored(new):
        error, optimum = _errors(path, w, new, layout, kind, stats)
    row = Row(
        path=path,
        shape=tuple(w.shape),
        format=_format(new),
        ranks=_ranks(new),
        params=kept.params,
        bytes=kept.bytes,
        flops=kept.flops,
        dense_params=dense.params,
        dense_bytes=dense.bytes,
        dense_flops=dense.flops,
        metric=type(kind).__name__,
        error=error,
        optimum=optimum,
        status=_status(new, error, optimum, kept.params, dense.params),
        shared=shared,
    )
    if lookup:
        # Reading a dense row is free; reading a factored one contracts its output side.
        *_, m, n = layout.matrix_shape(w.shape)
        new_flops = kept.flops * n // (m + n) if is_factored(new) else 0
        row = dataclasses.replace(row, flops=new_flops, dense_flops=0)
    if shared is not None:
        costs = [f"{d}{f}" for d in ("", "dense_") for f in ("params", "bytes", "flops")]
        row = dataclasses.replace(row, **dict.fromkeys(costs, 0), status=f"shared with {shared}")
    return row


def _view(
    path: str, w: Any, new: Any, stats: Stats | None, plan: Plan | None
) -> tuple[Layout, Kind, bool]:
    """Layout, metric kind, and whether only rows are read."""
    use = None if stats is None else stats.usage.get(path)
    lookup = use is not None and bool(use.uses) and all(u.kind is UseKind.LOOKUP for u in use.uses)
    seen = stats is not None and path in stats
    if plan is not None and path in plan:
        entry = plan[path]
        lookup |= len(entry.shape) > 1 and not entry.shared and not entry.dense_flops
        return entry.layout, entry.kind if seen or stats is None else Frobenius(), lookup
    layout = use.layout if use is not None and use.layout is not None else None
    if layout is None:
        layout = new.layout if is_factored(new) else default_layout(np.shape(w))
    return layout, default_kind(stats.of(path) if stats is not None and seen else None), lookup


def _errors(
    path: str, w: Any, new: Any, layout: Layout, kind: Kind, stats: Stats | None
) -> tuple[float, float | None]:
    """Relative loss of the stored factors, and the least that their rank allows."""
    if stats is None or path not in stats:
        kind, seen = Frobenius(), None
    else:
        seen = stats.of(path)
    bound = bind(path, w, layout, kind, seen)
    rebuilt = matricize(jnp.asarray(densify(new)), layout)
    lost, total, spectrum = jax.tree.map(np.asarray, _measure(bound.matrix, rebuilt, bound.metric))
    # as in the plan, a matrix of a stack counts by the tokens that it has seen
    counts = tokens_of(seen, kind)
    counts = counts / (counts.max() or 1)
    lost, total = np.sum(counts * lost), np.sum(counts * total)
    error = float(lost / total if total > 0 else lost)
    if not isinstance(new, LowRank) or not bound.metric.is_separable:
        return error, None
    energy = counts[..., None] * np.asarray(spectrum, np.float64) ** 2
    tail = float(energy[..., new.rank :].sum())
    return error, tail / max(float(energy.sum()), np.finfo(np.float64).tiny)


@jax.jit
def _measure(w: jax.Array, rebuilt: jax.Array, metric: Metric) -> tuple[jax.Array, ...]:
    w = w.astype(jnp.float32)
    lost = metric.loss(w - rebuilt.astype(jnp.float32))
    # a singular Gram leaves rounding of either sign
    return jnp.maximum(lost, 0), jnp.maximum(metric.loss(w), 0), metric.spectrum(w)


def _format(w: Any) -> str:
    """Class of a factored weight, of a sum those of its parts."""
    if isinstance(w, Sum):
        return " + ".join(map(_format, w.parts))
    return type(w).__name__ if is_factored(w) else "dense"


def _ranks(w: Any) -> tuple[int, ...]:
    if isinstance(w, Sum):
        return tuple(r for part in w.parts for r in _ranks(part))
    rank = getattr(w, "ranks", None) or getattr(w, "rank", None)
    if rank is None:
        return ()
    return tuple(rank) if isinstance(rank, tuple) else (int(rank),)


def _status(w: Any, error: float, optimum: float | None, params: int, dense: int) -> str:
    if not is_factored(w):
        return "dense"
    if not np.isfinite(error):
        return "NOT FINITE"
    if params >= dense:
        return "ABOVE BREAK-EVEN: larger than dense"
    if optimum is None:
        return "factored"
    # Rounding of stored factors and of the spectrum shows where the optimum is next to nothing.
    if error <= (1 + SLACK) * optimum + 1e-5:
        return "optimal"
    return f"{error / max(optimum, 1e-12):.3f} x the optimum"


def _line(row: Row) -> tuple[str, ...]:
    factored = row.format != "dense"
    return (
        row.path,
        shape_text(row.shape),
        row.format,
        " ".join(map(str, row.ranks)),
        f"{row.params:,}",
        bytes_text(row.bytes),
        f"{row.flops:,}",
        f"{row.error:.3e}" if factored else "",
        f"{row.optimum:.3e}" if row.optimum is not None else "",
        row.status,
    )


def _total_line(name: str, params: int, nbytes: int, flops: int) -> tuple[str, ...]:
    return (name, "", "", "", f"{params:,}", bytes_text(nbytes), f"{flops:,}", "", "", "")
