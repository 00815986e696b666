"""The status.json of one invocation."""

import contextlib
from collections.abc import Callable

from dist_prune import distributed
from dist_prune.errors import LocalRankError
from dist_prune.monitor.records import RunFolder, State


class RunStatus:
    """Writes status.json: rank 0 does, and a rank that alone knows why the run has failed."""

    def __init__(self, folder: RunFolder, last_step: Callable[[], int], resumed_from: int | None) -> None:
        self._folder, self._last_step, self._resumed_from = folder, last_step, resumed_from

    def write(self, state: State, reason: str | None = None) -> None:
        """Write the state of the run, on rank 0."""
        if distributed.is_main():
            self._write(state, reason)

    def fail(self, error: BaseException) -> None:
        """Write why the run has failed, on the rank that knows the cause.

        Rank 0 may be the rank that was lost. If it is not, its own error may be a mere consequence of the cause that
        another rank has written already.
        """
        knows_cause = isinstance(error, LocalRankError) and not error.reported
        if knows_cause or (distributed.is_main() and not self._has_failed()):
            self._write("failed", " ".join(str(error).split()) or type(error).__name__)

    def _write(self, state: State, reason: str | None) -> None:
        self._folder.write_status(state, reason, self._last_step(), self._resumed_from)

    def _has_failed(self) -> bool:
        """Return True if another rank has written a failure; this invocation began by writing "running"."""
        with contextlib.suppress(ValueError):
            return (self._folder.read_status() or {}).get("state") == "failed"
        return False
