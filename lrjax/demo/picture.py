"""The demo's picture: what the planner saw, what it chose, and what came of it."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lrjax import trees, viz
from lrjax.calibrate import Stats
from lrjax.demo.result import Row
from lrjax.metrics import default_kind
from lrjax.plan import Plan
from lrjax.plan.binding import bind
from lrjax.plan.spectra import spectra


def draw(path: Path, params: Any, stats: Stats, plan: Plan, rows: tuple[Row, ...]) -> None:
    """Writes the PNG: calibrated spectra, ranks by layer, and the three models side by side."""
    weights = trees.flatten(params)[0]
    bounds = [
        bind(e.path, weights[e.path], e.layout, default_kind(stats.of(e.path)), stats.of(e.path))
        for e in plan.entries
    ]
    ranks: dict[str, Any] = {e.path: getattr(e.spec, "rank", None) for e in plan.entries}
    labels = {path: _written(rank) for path, rank in ranks.items()}
    dots = {path: rank for path, rank in ranks.items() if isinstance(rank, int)}
    figure = Figure(figsize=(11.6, 8.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1), hspace=0.06)
    top, bottom = halves
    viz.spectra(spectra(bounds), dots, figure=top)
    top.suptitle(
        "Singular values of each weight, as its calibration inputs and output gradients "
        "weigh them; dots mark the ranks chosen",
        x=0.01,
        color=viz.INK,
        ha="left",
        fontsize=11,
    )
    left, right = bottom.subfigures(1, 2, width_ratios=(1.9, 1))
    viz.kept({e.path: e.keep for e in plan.entries}, labels, figure=left)
    left.suptitle(
        "Rank (written) and share of parameters kept (colour)",
        x=0.02,
        color=viz.INK,
        ha="left",
        fontsize=11,
    )
    cells: Any = right.subfigures(2, 1)
    viz.bars({r.name: r.cosine for r in rows}, title="cosine to the dense model", figure=cells[0])
    viz.bars(
        {r.name: r.bytes / 1e6 for r in rows},
        title="MB on disk",
        form="{:.1f}".format,
        figure=cells[1],
    )
    figure.savefig(path, dpi=130)


def _written(rank: int | tuple[int, ...] | None) -> str:
    """One rank, or those of all bands, two a line."""
    if isinstance(rank, tuple):
        pairs = (rank[k : k + 2] for k in range(0, len(rank), 2))
        return "\n".join(" ".join(map(str, pair)) for pair in pairs)
    return "dense" if rank is None else str(rank)
