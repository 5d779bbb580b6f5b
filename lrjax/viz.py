"""Plots: spectra with the ranks that a plan chose, what each weight keeps, and what it costs.

Every function takes plain mappings ``path -> value``, draws on a figure that belongs to no window
and returns it: ``lr.viz.spectra(curves, ranks).savefig("spectra.png")``. Paths that differ only in
their numbers are one *kind*: ``encoder/layer_*/mlp/up/kernel``; a kind shares a panel or a row, and
the numbers become its depth.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, PercentFormatter

INK, MUTED, FAINT, ACCENT = "#22303c", "#7b8794", "#e4e7eb", "#d1495b"
ROUNDING = 1e-4
"""Relative singular values below this are what float32 leaves of a Gram: not drawn."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def spectra(
    curves: Mapping[str, Any],
    ranks: Mapping[str, int | None] | None = None,
    *,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Singular values of each weight, relative to its first; a dot marks the rank that was chosen.

    One panel a kind, one line a weight, from the first layer (dark) to the last (light). What lies
    right of the dot is thrown away: its squares, summed, are the loss of that choice. A line
    without a dot is a weight that stays dense.
    """
    groups = _groups(curves)
    columns = min(4, len(groups)) or 1
    deep = next((kind for kind, paths in groups.items() if len(paths) > 1), None)
    with mpl.rc_context(STYLE):
        figure = figure or Figure(
            figsize=(2.9 * columns, 2.2 * math.ceil(len(groups) / columns)), layout="constrained"
        )
        axes = _grid(figure, len(groups), columns)
        for ax, (kind, paths) in zip(axes, groups.items(), strict=True):
            for path, color in zip(paths, _depths(len(paths)), strict=True):
                values = np.asarray(curves[path], np.float64).ravel()
                values = values / max(values.max(initial=0), 1e-30)
                values = np.where(values < ROUNDING, np.nan, values)
                ax.semilogy(np.arange(1, values.size + 1), values, color=color, lw=1.1)
                rank = (ranks or {}).get(path)
                if rank:
                    dot = {"ms": 4.5, "mfc": color, "mec": "white", "mew": 0.8, "zorder": 3}
                    ax.plot(rank, values[min(rank, values.size) - 1], "o", **dot)
            ax.set_title(_short(kind, groups))
            if kind == deep:
                ends = [line for line in ax.lines if len(line.get_xdata()) > 1]  # pyright: ignore
                names = ["first layer", "last layer"]
                ax.legend([ends[0], ends[-1]], names, frameon=False, fontsize=7, loc="upper right")
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            ax.set_xlim(left=0)
            ax.set_ylim(ROUNDING, 1.5)
        for ax in axes[-columns:]:
            ax.set_xlabel("rank")
        for ax in axes[::columns]:
            ax.set_ylabel("relative singular value")
    return figure


def kept(
    shares: Mapping[str, float],
    labels: Mapping[str, Any] | None = None,
    *,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """What share of each weight is kept: a row a kind, a column a layer; ``labels`` are written in.

    A plan reads as one picture: which layers, and which of their weights, were worth the bytes.
    """
    groups = _groups(shares)
    layers = sorted({_numbers(path) for path in shares} - {()}) or [()]
    place = {
        path: (row, layers.index(_numbers(path)) if _numbers(path) else 0)
        for row, paths in enumerate(groups.values())
        for path in paths
    }
    width = len(layers)
    grid = np.full((len(groups), width), np.nan)
    for path, cell in place.items():
        grid[cell] = shares[path]
    with mpl.rc_context(STYLE):
        size = (2.2 + 0.62 * width, 0.9 + 0.36 * len(groups))
        figure = figure or Figure(figsize=size, layout="constrained")
        if not shares:
            return figure
        ax = figure.add_subplot()
        ax.grid(visible=False)
        top = max(1.0, float(np.nanmax(grid)))
        image = ax.imshow(grid, cmap=_colors(), vmin=0, vmax=top, aspect="auto")
        for path, (row, column) in place.items():
            text = f"{shares[path]:.0%}" if labels is None else str(labels[path])
            ink = "white" if shares[path] > 0.55 * top else INK
            ax.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
        ax.set_yticks(range(len(groups)), [_short(kind, groups) for kind in groups])
        ax.set_xticks(range(width), [".".join(map(str, layer)) for layer in layers])
        ax.set_xlabel("layer")
        ax.spines[:].set_visible(False)
        ax.set_xticks(np.arange(width + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(len(groups) + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=2)
        ax.tick_params(which="minor", length=0)
        bar = figure.colorbar(image, ax=ax, format=PercentFormatter(1.0), pad=0.02, aspect=30)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return figure


def sizes(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Megabytes of each kind of weight, dense (pale) and as stored now, the largest on top."""
    groups = _groups(before)
    total = lambda of, kind: sum(float(of[path]) for path in groups[kind]) / 1e6
    kinds = sorted(groups, key=lambda kind: total(before, kind))
    with mpl.rc_context(STYLE):
        figure = figure or Figure(figsize=(5.6, 0.8 + 0.34 * len(kinds)), layout="constrained")
        ax = figure.add_subplot()
        ax.grid(visible=False, axis="y")
        rows = np.arange(len(kinds))
        dense, now = ([total(of, kind) for kind in kinds] for of in (before, after))
        ax.barh(rows, dense, color=FAINT, height=0.68)
        ax.barh(rows, now, color=_colors()(0.75), height=0.68)
        for row, (a, b) in enumerate(zip(dense, now, strict=True)):
            text = f" {b:.3g} of {a:.3g}"
            ax.text(max(a, b), row, text, va="center", fontsize=8, color=MUTED)
        ax.set_yticks(rows, [_short(kind, groups) for kind in kinds])
        ax.set_xlabel("MB")
        ax.margins(x=0.16)
        ax.spines.left.set_visible(False)
    return figure


def bars(
    values: Mapping[str, float],
    *,
    title: str = "",
    form: Callable[[float], str] = "{:.3f}".format,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """A few named numbers to compare; the last one, yours, in colour."""
    with mpl.rc_context(STYLE):
        size = (2.4, 0.7 + 0.34 * len(values))
        figure = figure or Figure(figsize=size, layout="constrained")
        ax = figure.add_subplot()
        ax.grid(visible=False)
        names = list(values)[::-1]
        colors = [ACCENT if k == 0 else "#b8c2cc" for k in range(len(names))]
        ax.barh(names, [values[name] for name in names], color=colors, height=0.62)
        for row, name in enumerate(names):
            ax.text(values[name], row, f" {form(values[name])}", va="center", fontsize=8)
        ax.set_title(title)
        ax.set_xticks([])
        ax.margins(x=0.3)
        ax.spines[["bottom", "left"]].set_visible(False)
    return figure


def _groups(paths: Mapping[str, Any]) -> dict[str, list[str]]:
    """Paths by kind, in order of appearance; within a kind by their numbers."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(re.sub(r"\d+", "*", path), []).append(path)
    return {kind: sorted(members, key=_numbers) for kind, members in groups.items()}


def _numbers(path: str) -> tuple[int, ...]:
    """The numbers in a path: its layer."""
    return tuple(int(n) for n in re.findall(r"\d+", path))


def _short(kind: str, kinds: Mapping[str, Any]) -> str:
    """The end of a path that tells it from the other kinds, without what all weights are called."""
    ends = ("/kernel", "/embedding", "/weight")
    bare = {k: k.removesuffix(next((e for e in ends if k.endswith(e)), "")) for k in kinds}
    parts = bare[kind].split("/")
    named = len(parts) > 1 and "*" not in parts[-2]  # "mlp/up" says more than "up"
    for n in range(1 + named, len(parts) + 1):
        tail = "/".join(parts[-n:])
        if "*" not in parts[-n] and sum(f"/{b}".endswith(f"/{tail}") for b in bare.values()) == 1:
            return tail
    return bare[kind]


def _colors() -> LinearSegmentedColormap:
    stops = ("#eef3f5", "#a9cfd4", "#4f9da6", "#1f6478", "#173f5f")
    return LinearSegmentedColormap.from_list("kept", stops)


def _depths(n: int) -> Sequence[Any]:
    return [mpl.colormaps["viridis"](x) for x in np.linspace(0.08, 0.82, n)]


def _grid(figure: Figure | SubFigure, n: int, columns: int) -> list[Axes]:
    rows = math.ceil(n / columns)
    return [figure.add_subplot(rows, columns, k + 1) for k in range(n)]
