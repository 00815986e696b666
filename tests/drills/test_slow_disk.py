"""A disk that does not answer while a checkpoint is written: training continues; nothing is lost if it then dies."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from commands import records
from drill import AtStep, SignalToSelf, assert_same_course


@dataclass(frozen=True)
class HangingSync:
    """From now on, what this process writes never arrives on the disk, and it waits for that."""

    def __call__(self) -> None:
        os.fsync = lambda _: time.sleep(600)


@dataclass(frozen=True)
class HangThenDie:
    """A disk that hangs before the fourth step; the rank is killed before the sixth."""

    def __call__(self) -> None:
        AtStep(4, HangingSync())()
        AtStep(6, SignalToSelf(signal.SIGKILL))()


def test_training_goes_on_while_a_checkpoint_is_written(launch, resume, straight, tmp_path):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={0: HangThenDie()})
    assert ranks.wait() == [-signal.SIGKILL, 1], ranks.told()
    steps = [record["step"] for record in records(folder, "train")]
    assert steps == [1, 2, 3, 4, 5], "a step after that of the checkpoint"
    whole = [path.name for path in (folder / "checkpoints").glob("step-*")]
    assert whole == ["step-00000002"]
    resume(folder)
    assert_same_course(folder, straight)
