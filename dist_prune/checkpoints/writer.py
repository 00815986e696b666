"""When the checkpoints of a run are written, and by whom: rank 0, in the background."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from dist_prune import distributed
from dist_prune.checkpoints.format import save_checkpoint
from dist_prune.checkpoints.train_state import TrainState
from dist_prune.config import RunConfig
from dist_prune.monitor.records import RunFolder


class CheckpointWriter:
    """Writes the checkpoints of one invocation on rank 0, while all ranks train on.

    A context manager: on exit it waits until nothing is being written. An error that is expected (a full disk) goes
    to ``capture_errors``, so that all ranks raise it together; rank 0 raises any other with its next step.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, capture_errors: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._folder, self._config, self._capture_errors = folder, config, capture_errors
        self._began = time.monotonic()
        # One thread: checkpoints are written in order, and removing old ones needs the newest in place.
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        # An error that is on its way must not be hidden by another one.
        if error is None:
            self.wait()

    def check(self) -> bool:
        """Return True if ``checkpoint_minutes`` have passed, by the clock of rank 0; the step tells the others.

        Raises an unexpected error of the writer: training without checkpoints would be in vain.
        """
        if self._written is not None and self._written.done():
            self.wait()
        minutes = self._config.checkpoint_minutes
        passed = time.monotonic() - self._began
        return minutes is not None and distributed.is_main() and passed >= 60 * minutes

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint follows this step by ``checkpoint_every``."""
        every = self._config.checkpoint_every
        return every is not None and step % every == 0

    def write(self, state: TrainState) -> None:
        """Start to write a checkpoint on rank 0, once the previous one is written.

        The caller must not change ``state`` afterwards.
        """
        self.wait()
        # All ranks hold equal state (compared before), so one of them writes.
        if distributed.is_main():
            self._written = self._pool.submit(self._save, state)
        self._began = time.monotonic()

    def _save(self, state: TrainState) -> None:
        with self._capture_errors():
            folder, config = self._folder, self._config
            save_checkpoint(folder.checkpoints, state, config.keep_checkpoints, config.keep_best, folder.check_owner)

    def wait(self) -> None:
        """Wait until nothing is being written: a second snapshot beside the first would double the memory."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()
