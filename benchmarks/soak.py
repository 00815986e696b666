"""Soak test: two ranks train for a long time with one fault per minute; prints and writes the result.

    python benchmarks/soak.py [--minutes 30] [--every 60] [--seed 1] [--out benchmarks/results/soak.json]

After each fault the run ends and is resumed. The same training without faults runs beside it. At the end,
metrics.jsonl must hold every step exactly once, with the loss of the other run to the last bit. The memory of the other
run's ranks, which live as long as the test, is sampled throughout. Starts the ranks as the drills do, so it needs a
clone. Exit code 1 if a guarantee was broken.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / folder) for folder in ("drills", "helpers"))]
from drill import SETTINGS, Ranks, losses, status  # noqa: E402

RANK_TIMEOUT = 25.0  # of the run that is struck; a busy machine may keep a rank waiting for seconds
LONGEST = RANK_TIMEOUT + 35.0  # seconds from a fault to the end of all ranks
PATIENCE = 180.0  # seconds for a start, on a machine that does other things as well
RUN = (
    *SETTINGS, "epochs=2000", "checkpoint_every=10", "max_bad_steps=0",
)  # fmt: skip


@dataclass(frozen=True)
class Prepare:
    """A rank's progress is not shown; SIGUSR2 makes its next loss NaN; and it may have to let others go first."""

    nice: int

    def __call__(self) -> None:
        """Prepare this process."""
        from dist_prune.methods import Phase

        os.nice(self.nice)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        real, poison = Phase.task_loss, []
        signal.signal(signal.SIGUSR2, lambda *_: poison.append(float("nan")))

        def task_loss(phase: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = real(phase, logits, labels)
            return loss + poison.pop() if poison else loss

        Phase.task_loss = task_loss  # type: ignore[method-assign]


def _send(number: signal.Signals) -> Callable[[Ranks, int], None]:
    return lambda ranks, victim: os.kill(ranks.processes[victim].pid or 0, number)


def _kill_all(ranks: Ranks, victim: int) -> None:
    for process in ranks.processes:
        process.kill()


def _full_quota(ranks: Ranks, victim: int) -> None:
    """The next checkpoint of rank 0 finds no room: its files may not grow beyond 100 kB."""
    resource.prlimit(ranks.processes[0].pid or 0, resource.RLIMIT_FSIZE, (100_000, 100_000))


# Faults: (ranks, victim) -> None, the expected exit code, and the expected number of lines
FAULTS: dict[str, tuple[Callable[[Ranks, int], None], int, int]] = {
    "kill -9 of a rank": (_send(signal.SIGKILL), 1, 1),
    "kill -9 of all ranks": (_kill_all, -9, 0),
    "SIGTERM to a rank": (_send(signal.SIGTERM), 3, 0),
    "a rank stopped (SIGSTOP)": (_send(signal.SIGSTOP), 1, 1),
    "a loss of NaN in a rank": (_send(signal.SIGUSR2), 1, 1),
    "no room for a checkpoint": (_full_quota, 1, 1),
}


@dataclass
class Soak:
    """A run in a folder that ends and is resumed again and again."""

    folder: Path
    nice: int = 0
    settings: tuple[str, ...] = ()
    ranks: Ranks | None = None

    def start(self) -> None:
        """Start the ranks, from the newest checkpoint if there is one."""
        words = [
            "--ds_config",
            "ds_configs/zero2.json",
            "--out",
            str(self.folder),
            "--resume",
            "--set",
            *RUN,
            *self.settings,
        ]
        self.ranks = Ranks(self.folder, 2, words, dict.fromkeys(range(2), Prepare(self.nice)))

    def steps(self) -> int:
        """Steps in metrics.jsonl, by its last line."""
        path = self.folder / "metrics.jsonl"
        if not path.exists() or not path.stat().st_size:
            return 0
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = [line for line in file.read().split(b"\n")[:-1] if line.endswith(b"}")]
        return json.loads(lines[-1])["step"] if lines else 0

    def train_on(self) -> int:
        """Wait until the run is on its way; its step then."""
        before, deadline = self.steps(), time.monotonic() + PATIENCE
        while self.steps() in range(max(before - 30, 0), before + 3):
            assert time.monotonic() < deadline, f"no progress since step {before}: {self.told()}"
            assert self.ranks is not None
            assert all(p.is_alive() for p in self.ranks.processes), self.told()
            time.sleep(0.2)
        return self.steps()

    def told(self) -> list[str]:
        """What the ranks have said on standard error since their start."""
        assert self.ranks is not None
        return self.ranks.told()

    def strike(self, kind: str, victim: int) -> dict[str, Any]:
        """Do something to the run and see how it ends."""
        assert self.ranks is not None
        do, expected, lines = FAULTS[kind]
        at, began = self.steps(), time.monotonic()
        do(self.ranks, victim)
        stopped = "SIGSTOP" in kind
        for _ in range(int(4 * PATIENCE)):
            codes = self.ranks.wait(0.25)
            if all(code is not None for i, code in enumerate(codes) if not (stopped and i == victim)):
                break
        seconds = time.monotonic() - began
        if stopped:
            self.ranks.processes[victim].kill()
            codes = self.ranks.wait(10)
        others = [c for i, c in enumerate(codes) if i != victim or c != -signal.SIGKILL] or [-9]
        told = self.told()
        self.ranks.end()  # what a broken promise has left would train on beside the next ones
        return {
            "fault": kind, "victim": victim, "step": at, "seconds_to_end": round(seconds, 1), "told": told,
            "codes": codes, "as_promised": set(others) == {expected} and len(told) == lines and seconds < LONGEST,
            "status": status(self.folder)["state"],
        }  # fmt: skip


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def slope(samples: list[tuple[float, float]]) -> float:
    """MB an hour, by least squares over (seconds, MB)."""
    seconds, megabytes = np.array(samples).T
    return float(np.polyfit(seconds / 3600, megabytes, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, help="seconds from one fault to the next")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default="benchmarks/results/soak.json")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ |= {"OMP_NUM_THREADS": "1", "DIST_PRUNE_DATA": os.environ.get("DIST_PRUNE_DATA", str(work / "data"))}
    result = soak(work, options.minutes * 60, options.every, random.Random(options.seed))
    Path(options.out).write_text(json.dumps({"command": " ".join(sys.argv), **result}, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("faults", "memory")}))
    sys.exit(not result["kept"])


def soak(work: Path, seconds: float, every: float, chance: random.Random) -> dict[str, Any]:
    run = Soak(work / "run", settings=(f"rank_timeout={RANK_TIMEOUT:g}",))
    calm = Soak(work / "calm", nice=5)
    run.start()
    run.train_on()  # the embedded data are made once
    calm.start()
    calm.train_on()
    began = time.monotonic()
    memory: dict[str, list[tuple[float, float]]] = {"rank 0": [], "rank 1": []}
    struck: list[dict[str, Any]] = []
    due: list[str] = []
    while time.monotonic() - began < seconds:
        run.train_on()
        next_one = began + every * (len(struck) + 1) + chance.uniform(0, every / 6)
        while time.monotonic() < min(next_one, began + seconds):
            sample(calm, memory, began)
            time.sleep(2)
        due = due or chance.sample(sorted(FAULTS), len(FAULTS))
        struck.append({"minute": (time.monotonic() - began) / 60, **run.strike(due.pop(), chance.randrange(2))})
        print(struck[-1], flush=True)
        run.start()
    run.train_on()
    for each in (run, calm):
        while each is calm and calm.steps() < run.steps():
            sample(calm, memory, began)
            time.sleep(2)
        assert each.ranks is not None
        _send(signal.SIGTERM)(each.ranks, 0)
        assert each.ranks.wait() == [3, 3], each.told()
    found = outcome(run, calm, struck, memory)
    return {**found, "minutes": (time.monotonic() - began) / 60, "memory": thin(memory), "faults": struck}


def sample(calm: Soak, memory: dict[str, list[tuple[float, float]]], began: float) -> None:
    assert calm.ranks is not None
    assert all(process.is_alive() for process in calm.ranks.processes), calm.told()
    for name, process in zip(memory, calm.ranks.processes, strict=True):
        memory[name].append((time.monotonic() - began, resident(process.pid or 0)))


def thin(memory: dict[str, list[tuple[float, float]]]) -> dict[str, list[list[float]]]:
    """About one sample a minute: [minute, MB]."""
    return {
        name: [[round(t / 60, 1), round(mb, 1)] for t, mb in samples[:: max(1, len(samples) // 30)]]
        for name, samples in memory.items()
    }


def outcome(
    run: Soak, calm: Soak, struck: list[dict[str, Any]], memory: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """What became of the promises."""
    mine, theirs = losses(run.folder), losses(calm.folder)  # raises if a step is missing or comes twice
    left = [p.name for p in [*run.folder.rglob(".*")]]
    settled = {name: samples[len(samples) // 3 :] for name, samples in memory.items()}
    result = {
        "benchmark": "soak",
        "date": datetime.date.today().isoformat(),
        "faults_struck": len(struck),
        "ended_as_promised": sum(fault["as_promised"] for fault in struck),
        "longest_to_end_seconds": max(fault["seconds_to_end"] for fault in struck),
        "steps": len(mine),
        "every_step_once": True,
        "losses_equal_to_the_last_bit": mine == theirs[: len(mine)],
        "steps_of_the_calm_run": len(theirs),
        "memory_slope_mb_per_hour": {name: round(slope(s), 1) for name, s in settled.items()},
        "memory_slope_over": "the last two thirds of the time, ranks of the calm run",
        "left_over_files": left,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores shared with other work",
        "torch": torch.__version__,
    }
    result["kept"] = result["losses_equal_to_the_last_bit"] and result["ended_as_promised"] == len(struck)
    return result


if __name__ == "__main__":
    main()
