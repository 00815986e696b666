"""Locks of what is compiled on first use: they end with the process that holds them."""

from __future__ import annotations

from typing import Any

from filelock import FileLock


class _Lock:
    """Takes the place of torch's FileBaton: a file whose mere existence locks, so that one of a killed process lasts.

    Whoever gets the lock builds, which is soon done where another process has built just before.
    """

    def __init__(self, path: str, *_: Any, **__: Any) -> None:
        self._lock = FileLock(f"{path}.held")

    def try_acquire(self) -> bool:
        """Wait for the lock; always true."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let others build."""
        self._lock.release()


def outlast_killed_builds() -> None:
    """Let torch, and so DeepSpeed, compile although a process was killed in the middle of that earlier.

    The lock's torch needs no help. pyproject.toml allows torch from 2.9 on, though, and up to 2.11 each later start
    would wait for ever, without a word: this goes when the lowest torch is one without FileBaton.
    """
    from torch.utils import cpp_extension

    if hasattr(cpp_extension, "FileBaton"):
        cpp_extension.FileBaton = _Lock
