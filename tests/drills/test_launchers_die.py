"""A restart by torchrun continues from the newest checkpoint; a launcher that is killed leaves no orphan."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drill import ROOT, SETTINGS, losses, status

pytestmark = pytest.mark.drill
BIN = Path(sys.executable).parent


def children(pid: int) -> list[int]:
    """All processes below this one."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def ranks_below(pid: int) -> list[int]:
    """The ranks that a launcher has started, in their order."""
    program = [sys.executable, "launch/train.py"]
    return sorted(p for p in children(pid) if [w for w in command(p).split() if w != "-u"][:2] == program)


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def launcher(data_home, tmp_path):
    """Start a launcher in a session of its own, whose processes all end with the test."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"DIST_PRUNE_DATA": str(data_home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    started: list[subprocess.Popen] = []

    def start(*words: str, settings: tuple[str, ...] = ()) -> subprocess.Popen:
        with open(tmp_path / "launcher.log", "wb") as log:
            run = ["launch/train.py", "--ds_config", "ds_configs/zero2.json", "--out", str(tmp_path / "run")]
            process = subprocess.Popen(
                [*words, *run, "--resume", "--set", *SETTINGS, *settings],
                cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(pid.name)) == process.pid:
                    os.kill(int(pid.name), signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


def trained(folder: Path, steps: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and path.read_text().count("\n") >= steps


@pytest.mark.parametrize("rendezvous", ["--standalone", "--rdzv_backend=static"])
def test_with_max_restarts_a_run_of_which_a_rank_is_killed_ends_as_if_nothing_had_happened(
    launcher, straight, tmp_path, rendezvous
):
    folder = tmp_path / "run"
    words = [str(BIN / "torchrun"), rendezvous, "--nproc_per_node", "2", "--max_restarts", "2"]
    process = launcher(*words, settings=("epochs=2",))
    wait_until(lambda: trained(folder, 4), 120)
    os.kill(ranks_below(process.pid)[1], signal.SIGKILL)
    assert process.wait(240) == 0, (tmp_path / "launcher.log").read_text()[-3000:]
    assert status(folder)["state"] == "done"
    assert status(folder)["resumed_from"] >= 2
    assert len(losses(folder)) == 22
    assert losses(folder)[:6] == losses(straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_whose_deepspeed_launcher_is_gone_save_and_end(launcher, tmp_path, number):
    folder = tmp_path / "run"
    process = launcher(str(BIN / "deepspeed"), "--num_accelerators", "2", settings=("epochs=500",))
    wait_until(lambda: trained(folder, 2), 120)
    below = children(process.pid)
    ranks = ranks_below(process.pid)
    assert len(ranks) == 2, [command(p) for p in below]
    os.kill(process.pid, number)
    process.wait(60)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 60)
    assert status(folder)["state"] == "stopped"
    assert status(folder)["reason"] == "the launcher is gone"
