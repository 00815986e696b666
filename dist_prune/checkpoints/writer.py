"""When the checkpoints of a run are written, and which of them stay."""

from __future__ import annotations

import copy
import time
from concurrent.futures import Future, ThreadPoolExecutor

from dist_prune import distributed
from dist_prune.checkpoints.format import Checkpoint, save_checkpoint
from dist_prune.training.context import Progress, RunContext
from dist_prune.training.step import StepMetrics


class Saving:
    """The checkpoints of one invocation; rank 0 writes them, while all ranks train on.

    A context manager: when it is left, nothing is being written any more. What hinders the writing is found in
    ``RunContext.pending_errors``, so that all ranks raise it together, after their next step or in ``sync_errors``.
    What nobody foresaw, rank 0 raises by itself, with its next step.
    """

    def __init__(self, setting: RunContext) -> None:
        self._setting = setting
        self._began = time.monotonic()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()

    def is_time(self) -> bool:
        """Whether so many minutes have passed, by the clock of rank 0; the step tells the others."""
        minutes = self._setting.config.checkpoint_minutes
        return (
            minutes is not None and distributed.is_main() and time.monotonic() - self._began >= 60 * minutes
        )

    def is_due(self, at: Progress, record: StepMetrics) -> bool:
        """Whether a checkpoint follows this step; that of the epoch's end follows its evaluation."""
        every = self._setting.config.checkpoint_every
        at_end = at.batch == self._setting.steps_per_epoch
        return not at_end and (record.save or (every is not None and at.step % every == 0))

    def write(self, checkpoint: Checkpoint, at: Progress) -> None:
        """Begin to write a checkpoint on rank 0, once the one before is written (``wait``).

        Nobody may change the tensors of ``checkpoint`` afterwards; its state is copied.
        """
        self.wait()
        if distributed.is_main():
            config = self._setting.config
            best = at.best_step if config.keep_best else None
            still = Checkpoint(
                checkpoint.weights, checkpoint.optimizer_state, copy.deepcopy(checkpoint.state)
            )
            self._written = self._pool.submit(self._save, still, at.step, config.keep_checkpoints, best)
        self._began = time.monotonic()

    def _save(self, checkpoint: Checkpoint, step: int, keep: int, best: int | None) -> None:
        with self._setting.capture_write_errors():
            save_checkpoint(self._setting.folder.checkpoints, checkpoint, step, keep, best)

    def check(self) -> None:
        """Raise what nobody foresaw if it has ended the writing: training on without checkpoints would be in vain."""
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; a new snapshot would else lie beside the one that is."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()


def note_best(at: Progress, accuracy: float) -> None:
    """Take note of an epoch's test accuracy, before its checkpoint is written."""
    if accuracy > at.best_accuracy:
        at.best_accuracy, at.best_step = accuracy, at.step
