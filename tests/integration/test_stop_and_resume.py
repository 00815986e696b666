"""A run that stops on request is saved, exits 3, and goes on as if it had not stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import BIN, QUICK, ROOT, records


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


def test_resuming_with_another_recipe_is_refused_by_the_key_that_differs(train, tmp_path):
    folder = tmp_path / "run"
    assert train("--out", folder, "--max_steps", "1").code == 3
    done = train("--out", folder, "--resume", settings=("lr=0.01",))
    assert done.code == 2
    assert "lr=0.1" in done.err
    assert len(done.lines) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_3(number, data_home, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "launch/train.py", "--ds_config", "ds_configs/zero0.json", "--out", str(folder)]
    environment = {**os.environ, "DIST_PRUNE_DATA": str(data_home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    words += ["--set", *QUICK, "epochs=500"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3, errors
    assert "Traceback" not in errors
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert signal.Signals(number).name in status["reason"]
    assert (folder / "checkpoints" / f"step-{status['last_step']:08d}" / "manifest.json").exists()
