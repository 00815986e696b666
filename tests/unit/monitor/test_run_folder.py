"""The run folder: contract of its records, and that nothing in it is ever half-written."""

import json
import os

import numpy as np
import pytest

from dist_prune.errors import UserError
from dist_prune.files import to_json
from dist_prune.monitor.records import EVAL_KEYS, SUMMARY_KEYS, RunFolder
from dist_prune.recipes import recipe
from dist_prune.training.run_folder import open_run_folder

EVAL = dict.fromkeys(EVAL_KEYS, 1) | {"energy_joules": None}
SUMMARY = dict.fromkeys(SUMMARY_KEYS, 1) | {"energy_joules": None}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "runs" / "x", resume=False)


def train(step):
    return {"epoch": 1, "step": step, "loss/total": 0.5}


def fail_to_rename(monkeypatch):
    def refuse(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", refuse)


def test_paths_are_those_of_the_design(run):
    paths = [run.config, run.status, run.metrics, run.tensorboard, run.checkpoints, run.mask, run.sliced]
    assert [str(path.relative_to(run.path)) for path in [*paths, run.report]] == [
        "config.json",
        "status.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "mask.json",
        "sliced",
        "report",
    ]


@pytest.mark.parametrize("trace", ["config.json", "status.json", "metrics.jsonl", "checkpoints/"])
def test_a_folder_that_holds_a_run_is_refused_unless_resumed(tmp_path, trace):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / trace).mkdir() if trace.endswith("/") else (folder / trace).touch()
    with pytest.raises(UserError) as refusal:
        RunFolder.create(folder, resume=False)
    assert str(refusal.value) == (f"{folder} already holds a run; pass --resume to continue it or choose another --out")
    assert RunFolder.create(folder, resume=True).path == folder


def test_a_new_or_empty_folder_holds_no_run_and_leaves_no_trace(tmp_path):
    assert not RunFolder.create(tmp_path, resume=False).holds_run()
    assert list(tmp_path.iterdir()) == []
    RunFolder.create(tmp_path, resume=False)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_way_is_one_clear_line(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError) as refusal:
        RunFolder.create(tmp_path / "file" / below, resume=True)
    assert "a file is in the way" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_unwritable_folder_is_one_clear_line(tmp_path, monkeypatch):
    def deny(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    with pytest.raises(UserError, match=r"^cannot write to the run folder .*: Permission denied$"):
        RunFolder.create(tmp_path, resume=False)


def test_config_and_status_come_back_as_written(run):
    assert run.read_status() is None
    run.write_json(run.config, {"lr": 0.1, "name": "ä"})
    assert json.loads(run.config.read_text("utf-8")) == {"lr": 0.1, "name": "ä"}
    run.write_status("running")
    run.write_status("stopped", reason="--max_steps 5", last_step=5, resumed_from=3)
    assert run.read_status() == {"state": "stopped", "reason": "--max_steps 5", "last_step": 5, "resumed_from": 3}


def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(run, monkeypatch):
    run.write_status("running", last_step=7)
    fail_to_rename(monkeypatch)
    with pytest.raises(OSError, match="fire"):
        run.write_status("done", last_step=8)
    assert run.read_status()["last_step"] == 7
    assert [path.name for path in run.path.iterdir()] == ["status.json"]


def test_what_cannot_be_json_leaves_the_old_file_whole(run):
    run.write_json(run.config, {"a": 1})
    with pytest.raises(AttributeError):
        run.write_json(run.config, {"a": object()})
    assert json.loads(run.config.read_text()) == {"a": 1}


def test_nan_and_infinities_become_null_however_deep(run):
    run.append("train", {**train(1), "loss/task": float("nan"), "deep": [{"x": np.array([1.0, np.inf])}]})
    text = run.metrics.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (record,) = run.read_metrics()
    assert record["loss/task"] is None
    assert record["deep"] == [{"x": [1.0, None]}]
    assert to_json({"x": np.float32("inf"), "n": np.int64(3)}) == '{"x": null, "n": 3}'


def test_records_come_back_in_order_and_by_kind(run):
    assert run.read_metrics() == []
    run.append("train", train(1))
    run.append("eval", EVAL)
    run.append("summary", SUMMARY)
    assert [record["kind"] for record in run.read_metrics()] == ["train", "eval", "summary"]
    assert run.read_metrics("eval") == [{"kind": "eval", **EVAL}]


def test_keys_stand_in_the_order_of_the_contract_and_extras_follow(run):
    run.append("eval", {"phase": "gated", **dict(reversed(EVAL.items()))})
    assert list(run.read_metrics()[0]) == ["kind", *EVAL_KEYS, "phase"]


@pytest.mark.parametrize(("kind", "record"), [("train", {"epoch": 1, "step": 1}), ("eval", EVAL), ("summary", SUMMARY)])
def test_a_record_that_lacks_a_key_is_refused_by_its_name(run, kind, record):
    for key in record:
        with pytest.raises(ValueError, match=key):
            run.append(kind, {k: v for k, v in record.items() if k != key})
    assert not run.metrics.exists()


def test_a_half_written_last_line_is_passed_over_and_the_next_record_has_its_own_line(run):
    run.append("train", train(1))
    with open(run.metrics, "ab") as file:
        file.write('{"kind": "train", "ä'.encode()[:-1])
    assert [record["step"] for record in run.read_metrics()] == [1]
    run.append("train", train(2))
    assert [record["step"] for record in run.read_metrics()] == [1, 2]


def test_a_whole_last_line_without_its_newline_is_kept(run):
    run.append("train", train(1))
    run.metrics.write_bytes(run.metrics.read_bytes().rstrip(b"\n"))
    run.append("train", train(2))
    assert [record["step"] for record in run.read_metrics()] == [1, 2]


@pytest.mark.parametrize("broken", [b"{broken", b"[" * 100_000])
def test_a_broken_line_before_the_last_is_an_error_that_names_it(run, broken):
    run.append("train", train(1))
    run.metrics.write_bytes(broken + b"\n" + run.metrics.read_bytes())
    with pytest.raises(ValueError, match="record 1 is not JSON"):
        run.read_metrics()


def test_resuming_drops_what_will_be_recorded_again(run):
    run.drop_after(0)  # nothing recorded yet
    for step in (10, 20, 30):
        run.append("train", train(step))
        run.append("eval", {**EVAL, "step": step})
    run.append("summary", SUMMARY)
    run.drop_after(20)
    kept = [(record["kind"], record["step"]) for record in run.read_metrics()]
    assert kept == [("train", 10), ("eval", 10), ("train", 20), ("eval", 20)]


def test_dropping_that_fails_half_way_loses_no_record(run, monkeypatch):
    run.append("train", train(10))
    run.append("train", train(20))
    fail_to_rename(monkeypatch)
    with pytest.raises(OSError, match="fire"):
        run.drop_after(10)
    assert [record["step"] for record in run.read_metrics()] == [10, 20]


def test_a_resume_is_refused_in_one_line_before_it_begins_if_a_record_is_damaged(run):
    run.append("train", train(1))
    run.metrics.write_bytes(b"{broken\n" + run.metrics.read_bytes())
    with (
        pytest.raises(UserError, match=r"the run folder is damaged: .*record 1 is not JSON; fix or remove that"),
        open_run_folder(recipe("digits"), str(run.path), True),
    ):
        pass
