"""Runs of the real command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
QUICK = ["model=resnet8", "epochs=2", "mask_samples=128", "log_every=1"]


@dataclass
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What stands on standard error, without empty lines."""
        return [line for line in self.err.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def command(data_home):
    """Run a command line in the repository, with a data folder of its own; fails after ``seconds``."""

    def run(*words: str | Path, seconds: float = 180, cwd: Path = ROOT) -> Finished:
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= {
            "DIST_PRUNE_DATA": str(data_home),
            "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def train(command):
    """``python launch/train.py`` with a quick setting of the embedded recipe."""

    def run(
        *words: str | Path, ds: str = "zero2", settings: tuple[str, ...] = (), seconds: float = 180
    ) -> Finished:
        config = words and "--ds_config" in words
        given = [] if config else ["--ds_config", f"ds_configs/{ds}.json"]
        return command(
            "python", "launch/train.py", *given, *words, "--set", *QUICK, *settings, seconds=seconds
        )

    return run


def records(folder: Path, kind: str) -> list[dict]:
    """The records of one kind in a run folder's metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory):
    """One quick finished run that several tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    done = train("--out", folder)
    assert done.code == 0, done.err
    return folder, done
