"""Which runs are repeats of each other, what tells the others apart, and what their numbers come to."""

import tempfile
from pathlib import Path

import pytest
from study_runs import make_run, naive_entries

from dist_prune.monitor.compare import Stat, dense_group, group_runs, read_run
from dist_prune.monitor.naive import naive_series
from dist_prune.monitor.study_labels import short_labels
from dist_prune.monitor.study_series import all_series


@pytest.fixture
def study(tmp_path):
    """Groups of runs, each given by its settings."""

    def groups(*runs):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        paths = [make_run(folder / f"run{number}", **settings) for number, settings in enumerate(runs)]
        return group_runs([read_run(path, path.name) for path in paths])

    return groups


def constant(value):
    return {"kind": "constant", "value": value}


def test_runs_that_differ_in_seed_data_path_and_bookkeeping_are_one_group(study):
    (group,) = study(
        {"seed": 2, "workers": 1}, {"seed": 1, "workers": 4, "channels_last": False, "rank_timeout": 60}
    )
    assert [run.seed for run in group.runs] == [1, 2]
    assert group.label == "half"


def test_mean_and_sample_deviation_are_over_the_seeds(study):
    (group,) = study(*({"seed": seed, "accuracy": 0.8 + 0.01 * seed} for seed in (1, 2, 3)))
    accuracy = group.stat("accuracy_sliced")
    assert (accuracy.mean, accuracy.deviation, accuracy.count) == (
        pytest.approx(0.82),
        pytest.approx(0.01),
        3,
    )


def test_one_value_has_no_deviation_and_no_value_no_mean():
    assert Stat.of([None, 0.5]) == Stat(0.5, None, 1)
    assert Stat.of([None]) is None


def test_a_label_names_the_recipe_and_what_differs_between_groups_of_that_recipe(study):
    groups = study(
        {"ratio": 0.5},
        {"ratio": 0.5, "kind": "channel"},
        {"ratio": 0.7, "kind": "channel"},
        {"name": "other", "lr": 0.5},
    )
    assert [group.label for group in groups] == [
        "half gates.kind=layer target_macs=0.5",
        "half gates.kind=channel target_macs=0.5",
        "half gates.kind=channel target_macs=0.7",
        "other",
    ]


def test_unequal_epochs_and_networks_are_named_across_recipes(study):
    groups = study({"epochs": 4}, {"name": "dense", "gated": False, "ratio": 1.0, "epochs": 6})
    assert [group.label for group in groups] == ["half epochs=4", "dense epochs=6"]


def test_schedules_are_named_as_a_whole_and_shortly(study):
    ramp = {"kind": "ramp", "start": 0.0, "end": 2.0, "from_epoch": 5.0, "to_epoch": 15.0}
    steps = {"kind": "steps", "values": [[0.0, 0.0], [125.0, 2.0]]}
    groups = study({"polarization": constant(3.0)}, {"polarization": ramp}, {"polarization": steps})
    assert [group.label for group in groups] == [
        "half polarization=3",
        "half polarization=0..2@5..15",
        "half polarization=0@0,2@125",
    ]


def test_precision_tells_groups_apart_and_the_zero_stage_does_not(study):
    bf16 = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    groups = study(
        {"ds_config": {"zero_optimization": {"stage": 2}}},
        {"ds_config": {"fp16": {"enabled": False}}, "seed": 2},
        {"ds_config": bf16},
    )
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("half precision=fp32", 2),
        ("half precision=bf16", 1),
    ]


def test_data_sets_of_another_size_are_not_pooled(study):
    groups = study({}, {"seed": 2, "macs_dense": 2_000_000})
    assert [group.label for group in groups] == ["half macs_dense=40000000", "half macs_dense=2000000"]


def test_labels_in_pictures_leave_out_a_recipe_name_that_all_share():
    assert short_labels(["half a=1", "half a=2"]) == ["a=1", "a=2"]
    assert short_labels(["half a=1", "other a=2"]) == ["half a=1", "other a=2"]
    assert short_labels(["half", "half a=2"]) == ["half", "half a=2"]


def test_an_unfinished_run_counts_in_no_mean(study):
    (group,) = study({"accuracy": 0.8}, {"seed": 2, "finished": False, "evaluated": 1})
    assert group.stat("accuracy_sliced") == Stat(0.8, None, 1)
    assert group.stat("open_ratio").count == 1


def test_what_gates_came_to_is_read_from_the_last_evaluation_that_has_it(study):
    gated, dense = study({}, {"name": "dense", "gated": False, "ratio": 1.0})
    (run,) = gated.runs
    assert gated.stat("r_polar").mean == run.evals[-1]["r_polar"]
    assert dense.stat("r_polar") is None


def test_the_dense_group_is_of_the_same_network_and_among_several_of_as_many_epochs(study):
    dense = {"name": "dense", "gated": False, "ratio": 1.0}
    groups = study({}, dense, {**dense, "model": "resnet56"})
    assert dense_group(groups[0], groups) is groups[1]
    assert dense_group(groups[1], groups) is groups[1]
    groups = study({"seed": 4}, {**dense, "seed": 4}, {**dense, "seed": 4, "epochs": 9})
    assert dense_group(groups[0], groups) is groups[1]
    groups = study({"seed": 5}, {**dense, "seed": 5}, {**dense, "seed": 5, "lr": 0.5})
    assert dense_group(groups[0], groups) is None, "two would do"


def test_groups_that_differ_in_how_much_is_pruned_are_one_series_by_rising_savings(study):
    groups = study({"ratio": 0.3}, {"ratio": 0.7}, {"ratio": 0.5, "kind": "channel"})
    layers, channels = all_series(groups)
    assert (layers.label, channels.label) == ("gates.kind=layer", "gates.kind=channel")
    assert [round(point.saved.mean, 2) for point in layers.points] == [0.3, 0.7]


def test_the_drop_is_measured_from_the_dense_group_and_is_unknown_without_one(study):
    gated = {"accuracy": 0.8}
    groups = study(gated, {"name": "dense", "gated": False, "ratio": 1.0, "accuracy": 0.83})
    own, dense = all_series(groups)
    assert own.points[0].drop.mean == pytest.approx(0.03)
    assert dense.points[0].drop.mean == 0
    assert dense.points[0].pruned.mean == 0
    assert all_series(study({**gated, "seed": 7}))[0].points[0].drop is None


def test_naive_baselines_are_pooled_over_draws_and_runs_and_dropout_saves_no_macs(study):
    dense = {"name": "dense", "gated": False, "ratio": 1.0}
    (group,) = study(
        {**dense, "naive": naive_entries()},
        {**dense, "seed": 2, "naive": naive_entries(accuracies=(0.7, 0.3), seeds=(3,))},
    )
    dropout, layers = naive_series([group])
    assert dropout.label == "naive dropout"
    assert [(point.share, point.accuracy.count) for point in dropout.points] == [(0.2, 3), (0.5, 3)]
    assert dropout.points[0].accuracy.mean == pytest.approx((0.58 + 0.56 + 0.64) / 3)
    assert [point.macs_ratio for point in dropout.points] == [None, None]
    assert [point.macs_ratio.mean for point in layers.points] == pytest.approx([0.8, 0.5])
    assert [series.naive for series in all_series([group])] == [False, True, True]


def test_the_macs_of_a_naive_baseline_are_shown_over_those_of_the_dense_network(study):
    (group,) = study({"ratio": 0.5, "naive": naive_entries()})
    _, layers = naive_series([group])
    assert [point.macs_ratio.mean for point in layers.points] == pytest.approx([0.4, 0.25])
