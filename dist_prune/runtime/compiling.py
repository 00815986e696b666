"""Locks of what is compiled on first use: they end with the process that holds them."""

from __future__ import annotations

from typing import Any

from filelock import FileLock


class _Lock:
    """Takes the place of torch's FileBaton: a file whose mere existence locks, so that one of a killed process lasts.

    The process that gets the lock builds, which is soon done where another process has built just before.
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
    """Let torch, and so DeepSpeed, compile although a process was killed in the middle of that earlier."""
    from torch.utils import cpp_extension

    # torch 2.9 to 2.11 (pyproject.toml allows them; machines of clusters have them) would wait forever, silently.
    if hasattr(cpp_extension, "FileBaton"):
        cpp_extension.FileBaton = _Lock
