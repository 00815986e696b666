"""Requests to stop: signals, a launcher that is gone, steps or hours. The next step saves and ends the run."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import NoReturn

from dist_prune.runtime.launch import Launcher

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_ONE_KEY_PRESS = 2.0  # seconds; a terminal and a launcher may both pass on one Ctrl-C


class StopRequest:
    """Watches for reasons to stop; a context manager that puts the old signal handlers back.

    A first signal asks for a stop at the next step on all ranks together (the flag travels in the step's
    all-reduce); a second Ctrl-C interrupts at once.
    """

    def __init__(self, max_steps: int | None = None, max_hours: float | None = None) -> None:
        self._max_steps = max_steps
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._steps = 0
        self._launcher = Launcher()
        self._interrupted: float | None = None
        self.reason: str | None = None

    def __enter__(self) -> StopRequest:
        asked = [number for number in _SIGNALS if not _is_under_nohup(number)]
        self._old = {number: signal.signal(number, self._on_signal) for number in asked}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            if signal.getsignal(number) == self._on_signal:  # an interruption may have set another
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > _ONE_KEY_PRESS:
                self._interrupt(number, frame)
            self._interrupted = self._interrupted or now
        self.reason = self.reason or f"received {signal.Signals(number).name}"

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        """Do what the program does about a Ctrl-C outside of training."""
        old = self._old[signal.SIGINT]
        if callable(old):
            old(number, frame)
        raise KeyboardInterrupt

    def count_step(self) -> None:
        """Tell that an optimizer step begins; sets the reason if it is to be the last."""
        self._steps += 1
        if self._max_steps is not None and self._steps >= self._max_steps:
            self.reason = self.reason or f"--max_steps {self._max_steps} reached"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "--max_hours reached"
        if self._launcher.is_gone():
            self.reason = self.reason or "the launcher is gone"


def _is_under_nohup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
