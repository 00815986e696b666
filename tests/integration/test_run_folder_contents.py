"""A finished run: the folder holds what the design promises, and the offline commands work on it."""

from __future__ import annotations

import json
import math

from commands import records

import dist_prune


def test_the_run_folder_holds_everything_the_design_lists(finished_run):
    folder, _ = finished_run
    for name in (
        "config.json", "status.json", "metrics.jsonl", "mask.json", "checkpoints/latest", "sliced/config.json",
        "sliced/model.safetensors", "sliced/README.md", "report/report.html", "report/mean_activation.png",
    ):  # fmt: skip
        assert (folder / name).exists(), name
    assert list((folder / "tensorboard").glob("events.*"))
    assert not list(folder.rglob("*.tmp")), "something was left half-written"
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"], status["resumed_from"]) == ("done", None, None)
    config = json.loads((folder / "config.json").read_text())
    assert config["world_size"] == 1
    assert config["config"]["model"] == "resnet8"
    assert config["versions"]["deepspeed"]


def test_records_have_the_keys_and_values_of_the_contract(finished_run):
    folder, _ = finished_run
    train, evals, (summary,) = (records(folder, kind) for kind in ("train", "eval", "summary"))
    assert [r["epoch"] for r in evals] == [1, 2]
    assert len(train) == evals[-1]["step"] == 22
    assert all(math.isfinite(r["loss/total"]) and r["loss/task"] <= r["loss/total"] + 1e-6 for r in train)
    assert summary["world_size"] == 1
    assert summary["max_abs_difference"] <= 1e-5
    assert summary["macs_ratio"] == summary["macs"] / summary["macs_dense"]
    measured = bool(summary["energy_sensors"])  # few machines have a sensor
    assert all((r["energy_joules"] is None) != measured and r["energy_joules"] != 0 for r in [*evals, summary])
    assert summary["accuracy_sliced"] == summary["accuracy_consensus"]


def test_the_final_table_says_where_the_files_are(finished_run):
    folder, done = finished_run
    (summary,) = records(folder, "summary")
    assert str(folder / "sliced") in done.out
    assert ("not measured" in done.out) == (not summary["energy_sensors"])
    assert "FLOP" not in done.out


def test_the_model_card_has_the_accuracy_of_the_sliced_network(finished_run):
    folder, _ = finished_run
    (summary,) = records(folder, "summary")
    card = (folder / "sliced" / "README.md").read_text()
    assert f"metrics: [{{type: accuracy, value: {summary['accuracy_sliced']}}}]" in card


def test_offline_collapse_gives_the_same_network_as_the_run(finished_run, forked, tmp_path):
    folder, _ = finished_run
    done = forked("dist-prune", "collapse", folder, "--out", tmp_path / "again")
    assert done.code == 0, done.err
    ours = dist_prune.load_sliced(folder / "sliced").state_dict()
    again = dist_prune.load_sliced(tmp_path / "again" / "sliced").state_dict()
    assert ours.keys() == again.keys()
    assert all(ours[name].equal(again[name]) for name in ours)
    assert (folder / "mask.json").read_text() == (tmp_path / "again" / "mask.json").read_text()


def test_evaluate_gives_the_accuracy_of_the_summary(finished_run, forked):
    folder, _ = finished_run
    done = forked("dist-prune", "evaluate", folder)
    assert done.code == 0, done.err
    (summary,) = records(folder, "summary")
    assert str(summary["accuracy_sliced"]) in done.out


def test_resuming_a_finished_run_exits_0_and_says_so(finished_run, train):
    folder, _ = finished_run
    before = (folder / "metrics.jsonl").read_bytes()
    done = train("--out", folder, "--resume")
    assert done.code == 0, done.err
    assert "already finished" in done.out
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused_in_one_line(finished_run, train):
    folder, _ = finished_run
    done = train("--out", folder)
    assert done.code == 2
    assert len(done.lines) == 1
    assert "already holds a run" in done.err
    assert "--resume" in done.err
