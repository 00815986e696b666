"""The launcher that started this rank: when it is gone, nobody is left to end the rank."""

from __future__ import annotations

import os
from pathlib import Path

_DEEPSPEED = "deepspeed.launcher.launch"
_LAUNCHERS = (_DEEPSPEED, "torchrun", "torch.distributed.run", "accelerate")


class Launcher:
    """The process that started this rank, if it is a launcher; ``is_gone`` once it no longer is its parent.

    ``deepspeed`` on one machine is two processes, and a SIGTERM ends the upper one only: that counts as gone, too.
    Without /proc nothing is known, and nothing is ever gone.
    """

    def __init__(self) -> None:
        self._pid = os.getppid()
        command = _read(self._pid, "cmdline")
        self._started_us = any(name in command for name in _LAUNCHERS)
        self._above = _parent(self._pid) if _DEEPSPEED in command else None

    def is_gone(self) -> bool:
        """Whether this rank is an orphan; takes microseconds."""
        if not self._started_us:
            return False
        return os.getppid() != self._pid or (self._above is not None and _parent(self._pid) != self._above)


def _parent(pid: int) -> int | None:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().replace("\0", " ")
    except OSError:
        return ""
