"""The launcher that started this rank: when it is gone, nobody is left to end the rank."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from dist_prune.errors import UserError

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


def refuse_missing_hostfile() -> None:
    """Raise UserError if ``deepspeed`` was given a hostfile that is not there.

    It only warns, and trains on this machine alone: a run of many nodes would become a run of one.
    """
    launch = os.getppid()
    above = _parent(launch) if _DEEPSPEED in _read(launch, "cmdline") else None
    words = _read(above, "cmdline").split() if above is not None else []
    for word, following in itertools.pairwise([*words, ""]):
        name, given, value = word.partition("=")
        path = value if given else following
        if name in ("--hostfile", "-H") and not Path(path).is_file():
            raise UserError(f"there is no hostfile {path}, so deepspeed would train on this machine alone")


def _parent(pid: int) -> int | None:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().replace("\0", " ")
    except OSError:
        return ""
