"""Plots draw what they are given, on figures of their own."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lrjax import viz

PATHS = [
    f"encoder/layer_{i}/{k}/kernel" for k in ("attention/query", "mlp/up") for i in (0, 1, 10, 2)
]
CURVES = {path: np.exp(-np.arange(9.0)) * (k + 1) for k, path in enumerate(PATHS)}
CURVES["embed/embedding"] = np.arange(9.0)[::-1]


def texts(figure):
    return [
        t.get_text() for ax in figure.axes for t in (*ax.texts, *ax.get_yticklabels(), ax.title)
    ]


def test_spectra_draw_one_panel_a_kind_one_line_a_weight_and_a_dot_a_rank():
    ranks = dict.fromkeys(PATHS, 3) | {"embed/embedding": None}
    figure = viz.spectra(CURVES, ranks)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["attention/query", "mlp/up", "embed"]
    assert [len(ax.lines) for ax in figure.axes] == [8, 8, 1]
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), [[3, np.exp(-2)]])


def test_kept_orders_layers_by_number_and_leaves_gaps_empty():
    shares = {path: 0.1 * k for k, path in enumerate(PATHS)} | {"embed/embedding": 1.0}
    figure = viz.kept(
        shares, {path: path.split("/")[1][6:] for path in PATHS} | {"embed/embedding": "e"}
    )
    assert [t.get_text() for t in figure.axes[0].texts] == [*["0", "1", "2", "10"] * 2, "e"]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "1", "2", "10"]
    grid = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(grid[2], np.nan), [1, np.nan, np.nan, np.nan])


def test_a_kind_without_some_layers_keeps_its_columns():
    figure = viz.kept({"a_0/k": 0.1, "a_1/k": 0.2, "a_2/k": 0.3, "a_2/v": 0.5})
    grid = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    np.testing.assert_allclose(grid, [[0.1, 0.2, 0.3], [np.nan, np.nan, 0.5]])


def test_sizes_add_up_by_kind():
    figure = viz.sizes(dict.fromkeys(PATHS, 2e6), dict.fromkeys(PATHS, 5e5))
    assert [t.get_text() for t in figure.axes[0].texts] == [" 2 of 8"] * 2


def test_bars_write_their_numbers():
    figure = viz.bars({"dense": 1.0, "mine": 0.25}, title="cosine")
    assert {"cosine", " 1.000", " 0.250"} <= {*texts(figure), figure.axes[0].get_title(loc="left")}


@pytest.mark.parametrize("draw", [viz.spectra, viz.kept, viz.bars, viz.sizes])
def test_empty_input_is_an_empty_figure(draw):
    arguments = ({}, {}) if draw is viz.sizes else ({},)
    assert isinstance(draw(*arguments), Figure)


def test_plots_leave_no_window_and_no_style_behind(tmp_path):
    before = dict(matplotlib.rcParams)
    viz.spectra(CURVES).savefig(tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").stat().st_size > 1000
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
