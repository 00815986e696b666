"""Commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
        """The non-empty lines of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


def run_command(*words: str | Path, data_home: Path, seconds: float = 180, cwd: Path = ROOT) -> Finished:
    """Run a command line; raise TimeoutExpired after ``seconds``."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(data_home),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def environment(data_home: Path) -> dict[str, str]:
    """Return the environment of a user in the repository, without the variables of a launcher."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return inherited | {
        "DIST_PRUNE_DATA": str(data_home),
        "PATH": f"{BIN}{os.pathsep}{inherited['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


def records(folder: Path, kind: str) -> list[dict]:
    """Return the records of one kind in a run folder's metrics."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
