"""Requests to stop: signals, a launcher that is gone, steps or hours. The next step saves and ends the run."""

from __future__ import annotations

import signal
import time
from types import FrameType

from dist_prune.runtime.launch import Launcher

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ONE_KEY_PRESS = 2.0  # seconds; a terminal and a launcher may both pass on one Ctrl-C


class StopRequest:
    """Watches for reasons to stop; a context manager that restores the old signal handlers.

    A first signal requests a stop after the next step, of all ranks together: the flag is part of the step's
    all-reduce. A second Ctrl-C interrupts at once. max_steps, max_hours: of this invocation; None for no limit.
    """

    def __init__(self, max_steps: int | None = None, max_hours: float | None = None) -> None:
        self._max_steps = max_steps
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._steps = 0
        self._launcher = Launcher()
        self._interrupted: float | None = None
        self.reason: str | None = None

    def __enter__(self) -> StopRequest:
        # nohup ignores SIGHUP for its program; a handler of ours would undo that.
        under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        handled = [number for number in _SIGNALS if not (number == signal.SIGHUP and under_nohup)]
        self._old = {number: signal.signal(number, self._on_signal) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            # An interruption may have set another handler, which must stay.
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > _ONE_KEY_PRESS:
                # What the program does on a Ctrl-C outside of training.
                if callable(outside := self._old[signal.SIGINT]):
                    outside(number, frame)
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        # The first reason stays: later ones are often consequences, as a launcher's SIGTERM after a Ctrl-C.
        self.reason = self.reason or f"received {signal.Signals(number).name}"

    def count_step(self) -> None:
        """Count an optimizer step that begins, and set the reason if it must be the last."""
        self._steps += 1
        if self._max_steps is not None and self._steps >= self._max_steps:
            self.reason = self.reason or f"--max_steps {self._max_steps} reached"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "--max_hours reached"
        # Some launchers end without a signal to their ranks, which would then train on unseen.
        if self._launcher.is_gone():
            self.reason = self.reason or "the launcher is gone"
