"""The SLURM script with stand-ins for srun and scontrol, which record how they are called, and the real program."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drill import ROOT, SETTINGS, losses, status

pytestmark = pytest.mark.drill
BIN = Path(sys.executable).parent
# Starts one task a node, each in a process group of its own. A signal goes to all processes of all tasks, as SLURM's
# early warning does, and scancel's SIGTERM.
SRUN = """
import os, pathlib, signal, subprocess, sys
print(*sys.argv[1:], file=open(os.environ["RECORD"], "a"))
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
nodes = range(int(os.environ["SLURM_NNODES"]))
tasks = [subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": str(n)}, start_new_session=True) for n in nodes]
def forward(number, frame):
    for task in tasks:
        os.killpg(task.pid, number)
signal.signal(signal.SIGUSR1, forward)
signal.signal(signal.SIGTERM, forward)
pathlib.Path(os.environ["SRUN_PID"]).write_text(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import os, sys
print("scontrol", *sys.argv[1:], file=open(os.environ["RECORD"], "a"))
if sys.argv[1] == "show":
    print("localhost", *("other" for _ in range(int(os.environ["SLURM_NNODES"]) - 1)), sep="\\n")
"""


class SlurmJob:
    """A job as SLURM would start it on ``nodes`` nodes, and start again under the same number."""

    def __init__(self, folder: Path, data: Path, nodes: int) -> None:
        self.run, self._pid, self._record, self.log = (folder / n for n in ("run", "pid", "record", "log"))
        self._process: subprocess.Popen[bytes] | None = None
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (folder / name).write_text(f"#!{sys.executable}\n{text}")
            (folder / name).chmod(0o755)
        self.number = str(_port() - 10000)  # the script makes its port of it
        self._environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {
            "PATH": f"{folder}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "DIST_PRUNE_DATA": str(data), "RECORD": str(self._record), "SRUN_PID": str(self._pid),
            "SLURM_JOB_ID": self.number, "SLURM_JOB_NODELIST": "any", "SLURM_NNODES": str(nodes),
            "RECIPE": "digits", "OUT": str(self.run),
        }  # fmt: skip

    def start(self, *words: str) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                ["bash", "launch/slurm/train.sbatch", *(words or ("--set", *SETTINGS))],
                cwd=ROOT, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        os.kill(int(self._pid.read_text()), number)

    def wait(self, seconds: float = 240) -> int:
        assert self._process is not None
        return self._process.wait(seconds)

    def record(self) -> str:
        return self._record.read_text()

    def trained(self, steps: int) -> None:
        """Return when so many steps are on record."""
        path, deadline = self.run / "metrics.jsonl", time.monotonic() + 240
        while not path.exists() or path.read_text().count("\n") < steps:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.signal(signal.SIGTERM)
            self._process.wait(60)


def _port() -> int:
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


@pytest.fixture
def job(tmp_path, data_home) -> Iterator[Callable[[int], SlurmJob]]:
    made: list[SlurmJob] = []

    def make(nodes: int) -> SlurmJob:
        made.append(SlurmJob(tmp_path, data_home, nodes))
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_an_early_warning_puts_the_job_back_into_the_queue_and_it_goes_on_to_the_end(job, straight):
    two_nodes = job(2)
    two_nodes.start()
    two_nodes.trained(3)
    two_nodes.signal(signal.SIGUSR1)
    since = time.monotonic()
    assert two_nodes.wait(60) == 3, two_nodes.log.read_text()[-3000:]
    print(f"from signal to exit: {time.monotonic() - since:.1f} s")
    assert status(two_nodes.run)["state"] == "stopped"
    assert status(two_nodes.run)["reason"] == "received SIGUSR1"
    assert two_nodes.record().endswith(f"scontrol requeue {two_nodes.number}\n")
    two_nodes.start()
    assert two_nodes.wait() == 0, two_nodes.log.read_text()[-3000:]
    assert status(two_nodes.run)["state"] == "done"
    assert two_nodes.record().count("requeue") == 1
    assert losses(two_nodes.run)[:6] == losses(straight)


def test_a_cancelled_job_is_saved_and_stays_out_of_the_queue(job):
    one_node = job(1)
    one_node.start()
    one_node.trained(3)
    one_node.signal(signal.SIGTERM)
    assert one_node.wait(60) == 3, one_node.log.read_text()[-3000:]
    assert status(one_node.run)["state"] == "stopped"
    assert "requeue" not in one_node.record()
    assert f"to continue, submit again with OUT={one_node.run}" in one_node.log.read_text()


def test_a_mistake_does_not_go_round_in_the_queue(job):
    one_node = job(1)
    one_node.start("--set", "epohcs=2")
    assert one_node.wait() == 1
    assert "error: unknown recipe key 'epohcs'" in one_node.log.read_text()
    assert "requeue" not in one_node.record()
    assert "not requeued" in one_node.log.read_text()
