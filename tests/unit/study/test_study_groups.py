"""Which runs are repeats of each other, what tells the others apart, and what their numbers come to."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from study_runs import make_run, naive_entries

from dist_prune.study.pictures import trade_off_picture, trade_off_points
from dist_prune.study.runs import naive_draws, read_runs, short_labels


@pytest.fixture
def study(tmp_path):
    """Runs, each given by its settings."""

    def runs(*settings):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        paths = [make_run(folder / f"run{number}", **of) for number, of in enumerate(settings)]
        return read_runs({path.name: path for path in paths})

    return runs


def groups(runs):
    return list(runs["group"].drop_duplicates())


def dense_of(runs, number):
    return runs.set_index("run")["dense"][f"run{number}"]


def points_of(runs, series, naive=False):
    return trade_off_points(runs).loc[(naive, series)].sort_values(("saved", "mean"))


def constant(value):
    return {"kind": "constant", "value": value}


def test_runs_that_differ_in_seed_data_path_and_bookkeeping_are_one_group(study):
    runs = study({"seed": 2, "workers": 1}, {"seed": 1, "workers": 4, "channels_last": False, "rank_timeout": 60})
    assert list(runs["seed"]) == [1, 2]
    assert groups(runs) == ["half"]


def test_mean_and_sample_deviation_are_over_the_seeds(study):
    runs = study(*({"seed": seed, "accuracy": 0.8 + 0.01 * seed} for seed in (1, 2, 3)))
    accuracy = points_of(runs, "half")["accuracy_sliced"].iloc[0]
    assert (accuracy["mean"], accuracy["std"]) == (pytest.approx(0.82), pytest.approx(0.01))


def test_one_value_has_no_deviation_and_no_value_no_mean(study):
    dense = {"name": "dense", "gated": False, "ratio": 1.0}
    half = points_of(study({"accuracy": 0.5}, dense), "half").iloc[0]
    assert half["accuracy_sliced"]["mean"] == 0.5
    assert np.isnan(half["accuracy_sliced"]["std"])
    assert np.isnan(study(dense)["open_ratio"].mean())


def test_a_label_names_the_recipe_and_what_differs_between_groups_of_that_recipe(study):
    runs = study(
        {"ratio": 0.5},
        {"ratio": 0.5, "kind": "channel"},
        {"ratio": 0.7, "kind": "channel"},
        {"name": "other", "lr": 0.5},
    )
    assert groups(runs) == [
        "half gates.kind=layer target_macs=0.5",
        "half gates.kind=channel target_macs=0.5",
        "half gates.kind=channel target_macs=0.7",
        "other",
    ]


def test_unequal_epochs_and_networks_are_named_across_recipes(study):
    runs = study({"epochs": 4}, {"name": "dense", "gated": False, "ratio": 1.0, "epochs": 6})
    assert groups(runs) == ["half epochs=4", "dense epochs=6"]


def test_schedules_are_named_as_a_whole_and_shortly(study):
    ramp = {"kind": "ramp", "start": 0.0, "end": 2.0, "from_epoch": 5.0, "to_epoch": 15.0}
    steps = {"kind": "steps", "values": [[0.0, 0.0], [125.0, 2.0]]}
    runs = study({"polarization": constant(3.0)}, {"polarization": ramp}, {"polarization": steps})
    assert groups(runs) == ["half polarization=3", "half polarization=0..2@5..15", "half polarization=0@0,2@125"]


def test_precision_tells_groups_apart_and_the_zero_stage_does_not(study):
    bf16 = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    runs = study(
        {"ds_config": {"zero_optimization": {"stage": 2}}},
        {"ds_config": {"fp16": {"enabled": False}}, "seed": 2},
        {"ds_config": bf16},
    )
    assert list(runs["group"].value_counts(sort=False).items()) == [
        ("half precision=fp32", 2),
        ("half precision=bf16", 1),
    ]


def test_data_sets_of_another_size_are_not_pooled(study):
    runs = study({}, {"seed": 2, "macs_dense": 2_000_000})
    assert groups(runs) == ["half macs_dense=40000000", "half macs_dense=2000000"]


def test_labels_in_pictures_leave_out_a_recipe_name_that_all_share():
    assert short_labels(["half a=1", "half a=2"]) == ["a=1", "a=2"]
    assert short_labels(["half a=1", "other a=2"]) == ["half a=1", "other a=2"]
    assert short_labels(["half", "half a=2"]) == ["half", "half a=2"]


def test_an_unfinished_run_counts_in_no_mean(study):
    runs = study({"accuracy": 0.8}, {"seed": 2, "finished": False, "evaluated": 1})
    assert list(runs["accuracy_sliced"].dropna()) == [0.8]
    assert runs["open_ratio"].count() == 1
    assert points_of(runs, "half")["accuracy_sliced"]["mean"].iloc[0] == 0.8


def test_what_gates_came_to_is_read_from_the_last_evaluation_that_has_it(study):
    runs = study({}, {"name": "dense", "gated": False, "ratio": 1.0})
    assert runs["r_polar"][0] == runs["evals"][0][-1]["r_polar"]
    assert np.isnan(runs["r_polar"][1])


def test_the_dense_group_is_of_the_same_network_and_among_several_of_as_many_epochs(study):
    dense = {"name": "dense", "gated": False, "ratio": 1.0}
    runs = study({}, dense, {**dense, "model": "resnet56"})
    assert dense_of(runs, 0) == dense_of(runs, 1) == groups(runs)[1]
    assert dense_of(runs, 2) == groups(runs)[2]
    runs = study({"seed": 4}, {**dense, "seed": 4}, {**dense, "seed": 4, "epochs": 9})
    assert dense_of(runs, 0) == groups(runs)[1]
    assert dense_of(runs, 2) == groups(runs)[2]
    runs = study({"seed": 5}, {**dense, "seed": 5}, {**dense, "seed": 5, "lr": 0.5})
    assert np.isnan(dense_of(runs, 0)), "two would do"
    assert dense_of(runs, 2) == groups(runs)[2]
    assert np.isnan(dense_of(study({}, {**dense, "finished": False}), 0))


def test_groups_that_differ_in_how_much_is_pruned_are_one_series_by_rising_savings(study):
    runs = study({"ratio": 0.3}, {"ratio": 0.7}, {"ratio": 0.5, "kind": "channel"})
    series = trade_off_points(runs).index.get_level_values("series")
    assert list(series) == ["gates.kind=layer"] * 2 + ["gates.kind=channel"]
    layers = trade_off_picture(runs).axes[0].containers[0].lines[0]
    assert list(layers.get_xdata()) == pytest.approx([0.3, 0.7])


def test_the_drop_is_measured_from_the_dense_group_and_is_unknown_without_one(study):
    gated = {"accuracy": 0.8}
    runs = study(gated, {"name": "dense", "gated": False, "ratio": 1.0, "accuracy": 0.83})
    assert points_of(runs, "half")["drop"]["mean"].iloc[0] == pytest.approx(0.03)
    dense = points_of(runs, "dense").iloc[0]
    assert dense["drop"]["mean"] == dense["pruned"]["mean"] == 0
    assert np.isnan(points_of(study({**gated, "seed": 7}), "half")["drop"]["mean"].iloc[0])


def test_naive_baselines_are_pooled_over_draws_and_runs_and_dropout_saves_no_macs(study):
    dense = {"name": "dense", "gated": False, "ratio": 1.0}
    runs = study(
        {**dense, "naive": naive_entries()},
        {**dense, "seed": 2, "naive": naive_entries(accuracies=(0.7, 0.3), seeds=(3,))},
    )
    draws = naive_draws(runs)
    assert draws.groupby(["series", "share"]).size().to_dict() == {
        ("naive dropout", 0.2): 3,
        ("naive dropout", 0.5): 3,
        ("naive layer pruning", 0.2): 3,
        ("naive layer pruning", 0.5): 3,
    }
    dropout, layers = (points_of(runs, f"naive {name}", naive=True) for name in ("dropout", "layer pruning"))
    assert dropout["accuracy_sliced"]["mean"][0.2] == pytest.approx((0.58 + 0.56 + 0.64) / 3)
    assert dropout["saved"]["mean"].isna().all()
    assert list(layers["saved"]["mean"]) == pytest.approx([0.2, 0.5])
    assert set(trade_off_points(runs).index.droplevel("point")) == {
        (False, "dense"),
        (True, "naive dropout"),
        (True, "naive layer pruning"),
    }


def test_the_macs_of_a_naive_baseline_are_shown_over_those_of_the_dense_network(study):
    draws = naive_draws(study({"ratio": 0.5, "naive": naive_entries(seeds=(1,))}))
    layers = draws[draws["baseline"] == "layers"]
    assert list(layers["macs_ratio"]) == pytest.approx([0.4, 0.25])
