"""Real ranks of the real program, one process each, that a fault-injection test can kill, stop, starve or poison."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import records
from ranks import FORKSERVER, as_a_user_starts_it, free_port

from dist_prune.checkpoints.format import load_newest

ROOT = Path(__file__).resolve().parents[2]
# A snapshot averages the statistics of norms over ranks: runs are equal to the last bit if they take the same ones.
SETTINGS = (
    "model=resnet8", "epochs=2", "mask_samples=64", "log_every=1", "workers=0", "global_batch_size=128",
    "checkpoint_every=2",
)  # fmt: skip
STEPS = 6  # of the uninterrupted run
Sabotage = Callable[[], None]


@dataclass(frozen=True)
class AtStep:
    """Calls ``action`` in one rank, right before it makes the run's ``step``-th step (from 1)."""

    step: int
    action: Sabotage

    def __call__(self) -> None:
        from dist_prune.training.loop import Trainer

        real = Trainer._step

        def step(trainer: Any, *arguments: Any) -> Any:
            if trainer.progress.step + 1 == self.step:
                self.action()
            return real(trainer, *arguments)

        Trainer._step = step  # type: ignore[method-assign]


@dataclass(frozen=True)
class AtFinish:
    """Calls ``action`` in one rank when training is over, before the network is collapsed and written."""

    action: Sabotage

    def __call__(self) -> None:
        from dist_prune.training import run

        real = run.finish

        def finish(*arguments: Any) -> Any:
            self.action()
            return real(*arguments)

        run.finish = finish


@dataclass(frozen=True)
class SignalToSelf:
    number: signal.Signals

    def __call__(self) -> None:
        os.kill(os.getpid(), self.number)


class Ranks:
    """The ranks of one run, under way. ``sabotage``: what is done in a rank before the program begins."""

    def __init__(
        self,
        folder: Path,
        world_size: int,
        words: Sequence[str],
        sabotage: dict[int, Sabotage],
        port: int | None = None,
    ) -> None:
        beside = folder.parent if os.access(folder.parent, os.W_OK) else folder.parent.parent
        self.errors = [beside / f"{folder.name}.{r}.err" for r in range(world_size)]
        port = port or free_port()
        self.processes = [
            FORKSERVER.Process(
                target=_rank, args=(r, world_size, port, error, list(words), sabotage.get(r)), daemon=True
            )
            for r, error in enumerate(self.errors)
        ]
        self.ended: dict[int, float] = {}
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 240) -> list[int | None]:
        """The exit codes by rank, None for one that is still there after ``seconds``."""
        deadline = time.monotonic() + seconds
        while len(self.ended) < len(self.processes) and time.monotonic() < deadline:
            for number, process in enumerate(self.processes):
                if not process.is_alive():
                    self.ended.setdefault(number, time.monotonic())
            time.sleep(0.02)
        return [process.exitcode for process in self.processes]

    def told(self) -> list[str]:
        """The lines on standard error of all ranks, without those that tell the progress."""
        lines = "".join(path.read_text() for path in self.errors).splitlines()
        return [line for line in lines if line.strip() and not line.startswith("step ")]

    def last_words(self, *codes: int) -> str:
        """Wait until all ranks have ended, with these codes and one line in all on standard error: that line."""
        told = self.wait(), self.told()
        assert told[0] == list(codes), told
        assert len(told[1]) == 1, told
        return told[1][0]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _rank(rank: int, world_size: int, port: int, error: Path, words: list[str], sabotage: Sabotage | None) -> None:
    as_a_user_starts_it()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where drills run under nohup
    with open(error, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115 - stays open as long as the process
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    os.chdir(ROOT)
    torch.set_num_threads(1)
    from dist_prune.cli.main import train_main

    if sabotage is not None:
        sabotage()
    train_main(words)


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) as metrics.jsonl has them, which must be every step once, in order."""
    found = [(record["step"], record["loss/total"]) for record in records(folder, "train")]
    assert [step for step, _ in found] == list(range(1, len(found) + 1)), "no gap and no double"
    return found


def assert_same_course(folder: Path, straight: Path) -> None:
    """A run has the losses of the uninterrupted one, step by step, and ends with its weights, bit for bit."""
    assert losses(folder) == losses(straight)
    (mine, passed_over), (theirs, _) = (load_newest(folder / "checkpoints"), load_newest(straight / "checkpoints"))
    assert mine is not None
    assert theirs is not None
    assert passed_over == []
    for kind, ours, expected in (
        ("weights", mine.model.weights, theirs.model.weights),
        ("optimizer state", flat(mine.model.optimizer_state), flat(theirs.model.optimizer_state)),
    ):
        assert ours.keys() == expected.keys()
        different = [name for name in expected if not torch.equal(ours[name], expected[name])]
        assert not different, f"{kind} of {different[:3]}"


def flat(states: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Optimizer state by parameter and state name in one."""
    return {f"{key}/{name}": tensor for name, state in states.items() for key, tensor in state.items()}


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())
