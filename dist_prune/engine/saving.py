"""When the checkpoints of a run are written, and which of them stay."""

from __future__ import annotations

import time

from dist_prune import distributed
from dist_prune.engine.checkpoint import Checkpoint, save_checkpoint
from dist_prune.engine.setting import Position, Setting
from dist_prune.engine.train_step import StepRecord


class Saving:
    """The checkpoints of one invocation; rank 0 writes them."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._written_at = time.monotonic()

    def is_time(self) -> bool:
        """Whether so many minutes have passed, by the clock of rank 0; the step tells the others."""
        minutes = self._setting.config.checkpoint_minutes
        return (
            minutes is not None
            and distributed.is_main()
            and time.monotonic() - self._written_at >= 60 * minutes
        )

    def is_due(self, at: Position, record: StepRecord) -> bool:
        """Whether a checkpoint follows this step; that of the epoch's end follows its evaluation."""
        every = self._setting.config.checkpoint_every
        at_end = at.batch == self._setting.steps_per_epoch
        return not at_end and (record.save or (every is not None and at.step % every == 0))

    def write(self, checkpoint: Checkpoint, at: Position) -> None:
        """Write a checkpoint on rank 0; what hinders that is raised by ``Setting.settle``."""
        config = self._setting.config
        if distributed.is_main():
            best = at.best_step if config.keep_best else None
            with self._setting.writing():
                save_checkpoint(
                    self._setting.folder.checkpoints, checkpoint, at.step, config.keep_checkpoints, best
                )
        self._written_at = time.monotonic()


def note_best(at: Position, accuracy: float) -> None:
    """Take note of an epoch's test accuracy, before its checkpoint is written."""
    if accuracy > at.best_accuracy:
        at.best_accuracy, at.best_step = accuracy, at.step
