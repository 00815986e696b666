"""The pictures show the data the right way round, and lose none of it."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from dist_prune.monitor import style
from dist_prune.monitor.pictures import GateHistory, activation_maps, curves, gate_history, polarization_picture


def history(means, sites, **columns):
    """A history with one record for each time, whose values are given by column."""
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return GateHistory(np.array(means), list(sites), records)


def labels(axes):
    return [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]


def test_in_the_mean_activation_picture_the_first_site_is_on_top_and_closed_is_dark(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    shown = history([[0.0, 1.0], [0.0, 1.0], [0.5, 1.0]], ["first", "second"], epoch=[1, 2, 3])
    figure = activation_maps([("title", shown)])
    picture = Image.open(io.BytesIO(style.png(figure, dpi=100))).convert("L")
    axes = figure.axes[0]

    def lightness(column, row):  # at the center of a cell, in the pixels of the file
        x, y = axes.transData.transform((column, row))
        return picture.getpixel((int(x), picture.height - int(y)))

    top, bottom = [axes.transData.transform((0, row))[1] for row in (0, 1)]
    assert top > bottom
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert lightness(0, 0) < 60
    assert lightness(0, 1) > 220
    assert lightness(0, 0) < lightness(2, 0) < lightness(2, 1)


@pytest.mark.parametrize(("sites", "epochs", "names_shown"), [(9, 10, 9), (54, 50, 54), (200, 300, 50)])
def test_the_mean_activation_picture_shows_every_cell_and_labels_that_do_not_crowd(sites, epochs, names_shown):
    means = np.random.default_rng(0).random((epochs, sites))
    shown = history(means, [f"s{i}" for i in range(sites)], epoch=range(1, epochs + 1))
    axes = activation_maps([("title", shown)]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), means.T)
    assert len(axes.get_yticks()) == names_shown
    assert axes.get_yticklabels()[0].get_text() == "s0"
    assert 5 <= len(axes.get_xticks()) <= 13


def test_the_polarization_picture_counts_what_became_of_the_sites():
    nan = np.nan
    means = [[0.5, 0.5, 0.5, 0.5, 0.5, nan], [1.0, 0.97, 0.0, 0.4, 0.0, nan], [1.0, 1.0, 0.0, 0.4, nan, nan]]
    axes = polarization_picture(history(means, "abcdef", step=[10, 20, 30])).axes[0]
    assert {text.get_text() for text in axes.texts} == {"2 open", "2 closed", "1 in between"}


def test_curves_draw_every_loss_term_and_only_panels_with_data():
    train = [
        {"step": step, "epoch": 1, "loss/total": 1.0, "loss/task": 0.5, "loss/macs": 0.5, "note": 3}
        for step in range(100)
    ]
    dense = [{"step": 99, "epoch": 1, "accuracy": 0.5, "accuracy_consensus": None, "open_ratio": None}]
    gated = [{**dense[0], "accuracy_consensus": 0.4, "open_ratio": 0.7, "macs_ratio": 0.6, "r_polar": 0.1}]
    loss, accuracy = curves(train, dense).axes
    assert labels(loss) == ["total", "task", "macs"]
    assert labels(accuracy) == ["evaluation"]
    _, accuracy, size, polarization = curves(train, gated).axes
    assert labels(accuracy) == ["gates dynamic", "gates fixed to the consensus"]
    assert labels(size) == ["open gates", "MACs under the mask"]
    assert labels(polarization) == ["evaluation"]


def test_many_points_are_shown_with_their_moving_mean_whose_window_shrinks_at_the_ends():
    values = np.random.default_rng(0).random(100)
    train = [{"step": step, "epoch": 1, "loss/total": value} for step, value in enumerate(values)]
    points, mean = (line.get_ydata() for line in curves(train, []).axes[0].get_lines())
    np.testing.assert_array_equal(points, values)
    expected = [values[max(i - 3, 0) : i + 4].mean() for i in range(100)]
    np.testing.assert_allclose(mean, expected)


def test_the_history_of_gates_leaves_gaps_where_a_site_was_not_recorded():
    records = [{"step": 1}, {"step": 2, "gate_means": {"a": 0.1, "b": 0.2}}, {"step": 3, "gate_means": {"b": 1}}]
    found = gate_history(records)
    np.testing.assert_array_equal(found.means, [[0.1, 0.2], [np.nan, 1.0]])
    assert found.sites == ["a", "b"]
    assert [record["step"] for record in found.records] == [2, 3]
    assert gate_history([]).means.shape == (0, 0)
