"""A run that stops has saved, says why by its exit code, and resumes as if it had not stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import LIMIT, ROOT, Forked, environment, quick, records

from data_tools import make_shards


def test_a_stopped_and_resumed_run_has_the_losses_of_an_uninterrupted_one(train, finished_run, tmp_path):
    folder = tmp_path / "stopped"
    first = train("--out", folder, "--max_steps", "7")
    assert first.code == 3, first.err
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["last_step"]) == ("stopped", 7)
    second = train("--out", folder, "--resume")
    assert second.code == 0, second.err
    assert json.loads((folder / "status.json").read_text())["resumed_from"] == 7
    straight, resumed = records(finished_run[0], "train"), records(folder, "train")
    assert [r["step"] for r in resumed] == list(range(1, 23)), "no gap and no double"
    for a, b in zip(straight, resumed, strict=True):
        assert b["loss/total"] == pytest.approx(a["loss/total"], rel=1e-6), f"step {a['step']}"


def test_no_speed_is_recorded_for_an_epoch_of_which_a_resumed_run_trains_no_step(train, tmp_path):
    folder, steps_per_epoch = tmp_path / "run", 11
    assert train("--out", folder, "--max_steps", steps_per_epoch).code == 3
    assert records(folder, "eval") == [], "stopped before the evaluation"
    resumed = train("--out", folder, "--resume", "--max_steps", 1)
    assert resumed.code == 3, resumed.err
    (evaluation,) = records(folder, "eval")
    assert evaluation["images_per_second"] is None
    assert "speed not measured" in resumed.out
    assert json.loads((folder / "status.json").read_text())["last_step"] == steps_per_epoch + 1


def test_resuming_with_another_recipe_is_refused_by_the_key_that_differs(train, tmp_path):
    folder = tmp_path / "run"
    assert train("--out", folder, "--max_steps", "1").code == 3
    done = train("--out", folder, "--resume", settings=("lr=0.01",))
    assert done.code == 2
    assert "lr=0.1" in done.err
    assert len(done.lines) == 1


def test_resuming_with_other_shards_is_refused_and_leaves_the_run_as_it_was(train, tmp_path):
    folder, data = tmp_path / "run", tmp_path / "data"
    make_shards("digits", None, data / "before", samples_per_shard=400)
    make_shards("digits", None, data / "after", samples_per_shard=300)
    (data / "now").symlink_to("before")
    assert train("--out", folder, "--data", data / "now", "--max_steps", "1").code == 3
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (data / "now").unlink()
    (data / "now").symlink_to("after")
    done = train("--out", folder, "--data", data / "now", "--resume")
    assert done.code == 2
    assert "1437 train images in 4" in done.err
    assert "1437 train images in 5" in done.err
    assert len(done.lines) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@contextmanager
def long_run(folder: Path, data_home: Path, *settings: str) -> Iterator[Forked]:
    """A run in its own process that has trained a step, and would for long."""
    words = quick("--out", folder, ds="zero0", settings=("epochs=500", *settings))
    with Forked(*words, variables=environment(data_home)) as run:
        deadline = time.monotonic() + LIMIT
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield run


def test_a_run_whose_worker_is_killed_ends_with_one_line_and_can_be_resumed(train, data_home, tmp_path):
    folder = tmp_path / "run"
    with long_run(folder, data_home, "workers=2", "checkpoint_every=1") as run:
        deadline = time.monotonic() + 60
        while not (worker := child_of(run.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(worker, signal.SIGKILL)
        done = run.wait(120)
    assert done.code == 1, done.err
    lines = [line for line in done.lines if not line.startswith("step ")]  # those tell the progress
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: a worker that reads data was ended by SIGKILL")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], f"error: {status['reason']}") == ("failed", lines[0])
    settings = ("epochs=500", "checkpoint_every=1")
    assert train("--out", folder, "--resume", "--max_steps", "1", ds="zero0", settings=settings).code == 3


def child_of(pid: int) -> int | None:
    """One of the processes that a process has forked without starting another program."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if Path(f"/proc/{child}/cmdline").read_bytes() == command:
                return int(child)
    return None


def test_a_second_ctrl_c_does_not_interrupt_what_the_first_one_ends(tmp_path):
    """As in a terminal: an impatient user, a program that takes a moment to clean up."""
    program = (
        "import time; from dist_prune import distributed; from dist_prune.cli.main import exit_with\n"
        "def work():\n"
        "    try: print('ready', flush=True); time.sleep(60)\n"
        "    finally: time.sleep(1); print('clean', flush=True)\n"
        "exit_with(work)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (1, "clean\n")
    assert errors == "interrupted; continue with --resume from what was saved before\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_3(number, data_home, tmp_path):
    folder = tmp_path / "run"
    with long_run(folder, data_home) as run:
        os.kill(run.process.pid, number)
        done = run.wait(60)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert signal.Signals(number).name in status["reason"]
    assert (folder / "checkpoints" / f"step-{status['last_step']:08d}" / "manifest.json").exists()
