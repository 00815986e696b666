"""The pictures of a comparison show every run and every point, and nothing that was not measured."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from study_runs import make_run, naive_entries

from dist_prune.monitor import style
from dist_prune.study.pictures import distribution_pictures, gated_runs, histogram, map_pictures, trade_off_picture
from dist_prune.study.runs import read_runs

DENSE = {"name": "dense", "gated": False, "ratio": 1.0, "accuracy": 0.84}


@pytest.fixture
def groups(tmp_path):
    def make(*runs):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        paths = [make_run(folder / f"run{number}", **settings) for number, settings in enumerate(runs)]
        return read_runs({path.name: path for path in paths})

    return make


def titles(figure):
    return [axes.get_title("left").replace("\n", " ") for axes in figure.axes if axes.get_title("left")]


def drawn(axes):
    """The points of every series: {label: [(x, y), ...]}."""
    return {
        container.get_label(): list(zip(*container.lines[0].get_data(), strict=True)) for container in axes.containers
    }


def test_the_drop_is_drawn_with_a_dense_group_and_the_pruned_share_with_naive_baselines(groups, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    alone = groups({"seed": 1}, {"seed": 2, "ratio": 0.7})
    assert titles(trade_off_picture(alone)) == ["Accuracy and saved MACs"]
    study = groups({"seed": 3}, {"seed": 4}, {**DENSE, "seed": 3, "naive": naive_entries()})
    figure = trade_off_picture(study)
    assert titles(figure) == ["Accuracy and pruned share", "Accuracy and saved MACs", "Accuracy lost by pruning"]
    pruned, saved, cost = map(drawn, figure.axes)
    assert saved["half"] == [pytest.approx((0.5, 0.82))]
    assert saved["dense"] == [pytest.approx((0.0, 0.84))]
    assert saved.keys() == {"half", "dense", "naive layer pruning"}, "dropout saves no MACs"
    assert pruned.keys() == {"half", "dense", "naive dropout", "naive layer pruning"}
    assert cost["half"] == [pytest.approx((0.5, 0.02))]
    assert cost.keys() == {"half", "dense"}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == pruned.keys()
    assert style.png(figure).startswith(b"\x89PNG")


def test_error_bars_are_sample_deviations_and_a_single_run_has_none(groups):
    study = groups({"seed": 1, "accuracy": 0.8}, {"seed": 2, "accuracy": 0.82}, DENSE)
    axes = trade_off_picture(study).axes[0]
    repeated, single = (container.lines[2][1].get_segments()[0] for container in axes.containers)
    assert np.ptp(repeated[:, 1]) == pytest.approx(2 * np.std([0.8, 0.82], ddof=1))
    assert single.size == 0


def test_there_is_no_trade_off_to_draw_for_one_run_or_before_any_is_finished(groups):
    assert trade_off_picture(groups({})) is None
    unfinished = groups({"seed": 3, "finished": False}, {"seed": 4, "finished": False})
    assert trade_off_picture(unfinished) is None


def test_every_gated_run_has_a_panel_that_names_group_and_seed(groups):
    study = groups({"seed": 2}, {"seed": 1, "ratio": 0.7}, {"seed": 3, "finished": False}, DENSE)
    (figure,) = map_pictures(gated_runs(study))
    assert titles(figure) == [
        "half target_macs=0.5, seed 2",
        "half target_macs=0.5, seed 3, unfinished",
        "half target_macs=0.7, seed 1",
    ]
    means = gated_runs(study)["history"].iloc[0].means
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), means.T)


def test_many_runs_go_into_several_pictures_and_one_run_into_the_picture_of_its_own_report(groups):
    many = gated_runs(groups(*({"seed": seed, "sites": 54} for seed in range(13))))
    first, last = map_pictures(many)
    assert (len(titles(first)), len(titles(last))) == (12, 1)
    assert len(first.axes[0].get_yticks()) <= 14, "54 names do not fit into a small panel"
    assert len(last.axes[0].get_yticks()) == 54


def test_the_histogram_holds_shares_of_sites_of_all_runs_by_epoch(groups):
    runs = gated_runs(groups({"seed": 1, "sites": 9}, {"seed": 2, "sites": 9}))
    shares = histogram(runs["history"])
    assert list(shares.columns) == [1, 2, 3, 4]
    np.testing.assert_allclose(shares.sum(), 1)
    last = np.concatenate([history.means[-1] for history in runs["history"]])
    assert shares.iloc[0, -1] == pytest.approx(np.mean(last < 0.05))
    assert shares.iloc[-1, -1] == pytest.approx(np.mean(last >= 0.95))


def test_the_opening_at_the_end_is_that_of_the_final_mask(groups):
    (run,) = gated_runs(groups({"sites": 5})).itertuples()
    assert set(run.at_the_end) <= {0.0, 1.0}
    assert not set(run.history.means[-1]) <= {0.0, 1.0}


def test_depth_shows_the_mean_over_the_finished_runs_and_a_dot_for_each(groups):
    study = groups({"seed": 1}, {"seed": 2}, {"seed": 3, "finished": False})
    runs = gated_runs(study)
    (figure,) = distribution_pictures(runs)
    depth = figure.axes[0]
    expected = np.mean(list(runs["at_the_end"][:2]), axis=0)
    assert [bar.get_height() for bar in depth.patches] == pytest.approx(list(expected))
    assert len(depth.collections) == 2
    assert titles(figure)[0] == "half"


@pytest.mark.parametrize(("sites", "kind"), [(9, "layer"), (54, "layer"), (108, "channel")])
def test_pictures_of_gates_can_be_drawn_at_any_depth_and_for_channels(groups, sites, kind):
    runs = gated_runs(groups(*({"seed": seed, "sites": sites, "kind": kind} for seed in (1, 2))))
    for figure in [*map_pictures(runs), *distribution_pictures(runs)]:
        assert style.png(figure, dpi=40).startswith(b"\x89PNG")


def test_runs_without_gates_have_no_pictures_of_gates(groups):
    none = gated_runs(groups(DENSE))
    assert none.empty
    assert map_pictures(none) == distribution_pictures(none) == []
