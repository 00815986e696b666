"""Ownership of a run folder: two runs that write checkpoints and records into it would corrupt both."""

import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

from dist_prune.errors import RunError, UserError

LOCK_NAME = "run.lock"
BEAT = 2.0  # seconds between two signs of life of the process that trains
SILENCE = 10.0  # seconds without one after which a process on another machine counts as lost


class RunTakenOver(RunError):
    """Another invocation has continued the run meanwhile; this one must write nothing more."""


class RunLock:
    """A run folder's ownership by one invocation, recorded in its file ``run.lock``.

    Rank 0 acquires it; the other ranks know ``invocation`` and can check it. A context manager that releases it.

    Args:
        folder: the run folder.
        invocation: random name of one start of the program, the same on all its ranks.
        descriptor: of the locked file, on rank 0.
    """

    def __init__(self, folder: str | os.PathLike[str], invocation: str, descriptor: int | None = None) -> None:
        self.invocation = invocation
        self._path, self._descriptor = Path(folder) / LOCK_NAME, descriptor
        self._released = threading.Event()
        self._life = threading.Thread(target=self._beat, daemon=True)
        if descriptor is not None:
            _HELD.add(self)
            self._life.start()

    @classmethod
    def acquire(cls, folder: str | os.PathLike[str], silence: float = SILENCE) -> "RunLock":
        """Take the folder for a new invocation; one that ended without releasing it, or was lost, is replaced.

        Raises:
            UserError: another process is training there; the message names it.
            OSError: ``run.lock`` cannot be written.
        """
        path, invocation = Path(folder) / LOCK_NAME, secrets.token_hex(8)
        record = {"invocation": invocation, "host": socket.gethostname(), "pid": os.getpid(), "boot": _boot()}
        while True:
            # Not for writing: a file that is open for that keeps the system from making a failing disk read-only.
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                free, holder = _try_lock(descriptor), _read(path)
                # If not, another process released or replaced the file between the two calls.
                if _is(path, descriptor):
                    _refuse_if_training(holder, free, path, silence)
                    if free is not False:
                        path.write_text(json.dumps(record))
                        return cls(folder, invocation, descriptor)
                    # The lock of a lost node stays with its file.
                    os.unlink(path)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def check(self) -> None:
        """Raise RunTakenOver if the folder belongs to another invocation by now; before each write to it.

        A process that was frozen (a suspended machine, a file system that hung) may wake up long after its run was
        continued elsewhere.
        """
        holder = _read(self._path)
        # Moved away or unmounted: nothing must be made in its place, and the lock comes back with it.
        if not holder and not self._path.parent.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path.parent))
        if holder.get("invocation") != self.invocation:
            by = f"process {holder['pid']} of host {holder['host']}" if "pid" in holder else "another process"
            raise RunTakenOver(f"{by} has continued the run in {self._path.parent}: this one stops and writes nothing")

    def release(self) -> None:
        """Give the folder up; the file goes, unless it belongs to another invocation by now."""
        if self._descriptor is None:
            return
        self._released.set()
        self._life.join()
        with suppress(OSError):
            if _is(self._path, self._descriptor) and _read(self._path).get("invocation") == self.invocation:
                os.unlink(self._path)
        self._close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        while self._descriptor is not None and not self._released.wait(BEAT):
            with suppress(OSError):
                os.utime(self._descriptor)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


# A forked data worker inherits the lock, and would hold it for seconds after its parent was killed.
_HELD: weakref.WeakSet["RunLock"] = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in _HELD:
        lock._close()


os.register_at_fork(after_in_child=_close_inherited)


def _try_lock(descriptor: int) -> bool | None:
    """Return True if the file is locked now, False if another process holds it, None if there are no locks.

    Network file systems grant no exclusive lock to a file that is open for reading: there signs of life decide.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _refuse_if_training(holder: dict[str, Any], free: bool | None, path: Path, silence: float) -> None:
    """Raise UserError if the process that ``holder`` names still trains; free: as ``_try_lock`` returned it."""
    here = holder.get("boot", _boot()) == _boot()
    # The kernel ends a lock with its process, so on one machine the lock decides. Between machines it does not: file
    # systems may not share locks, or keep that of a lost node.
    trains = free is False if here and free is not None else bool(holder) and _lives(path, silence)
    if trains:
        host = "this machine" if here else f"host {holder.get('host')}"
        raise UserError(
            f"process {holder.get('pid', '(number unknown)')} of {host} is training in {path.parent}: wait until it "
            "has ended, or end it, then try again"
        )


def _read(path: Path) -> dict[str, Any]:
    """Return the record in the file; {} if there is none."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _is(path: Path, descriptor: int) -> bool:
    """Return True if the open file is the one under this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _lives(path: Path, silence: float) -> bool:
    """Return True if the file's owner gives a sign of life within ``silence`` seconds.

    Times are compared with times of the same file only: clocks of machines differ.
    """

    def beat() -> tuple[int, int]:
        # Opening the file makes a network file system ask its server.
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
        return found.st_ino, found.st_mtime_ns

    end = time.monotonic() + silence
    with suppress(FileNotFoundError):
        first = beat()
        while time.monotonic() < end:
            time.sleep(0.2)
            if beat() != first:
                return True
    return False


def _boot() -> str:
    """Return the number of this machine's start: containers of one machine share it, and its locks."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
