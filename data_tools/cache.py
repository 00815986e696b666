"""An LRU cache of remote shards, which all processes of a machine share.

A file is named by the SHA-256 of its content, or of its address where the index has none. Other files in the folder
are the user's: they are neither counted nor touched.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_tools.errors import LocalDiskError, ShardError, reported
from data_tools.index import Shard

CACHED = re.compile(r"[0-9a-f]{64}\.tar")
COPYING = re.compile(r"[0-9a-f]{64}\.partial")  # a folder for a shard that is being copied
STRIPE = 2  # shards whose checksums agree in so many digits share a lock, so that locks stay few
EVICTION_LOCK = ".evict.lock"
# Seconds after which an unused shard is compared with its checksum before it is used again. 110 MB
# take 0.06 s: if every use did so, each of 8 workers would lose a fifth of its time.
TRUSTED = 3600.0


def default_cache_dir() -> Path:
    """Make and return the user's folder under the system's temporary folder."""
    folder = Path(tempfile.gettempdir()) / f"dist_prune-{os.getuid()}"
    with reported(f"cannot make {folder}", fix="; choose another cache folder"):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode):
        raise ShardError(f"{folder} is a link: remove it, or choose another cache folder")
    if state.st_uid != os.getuid():
        raise ShardError(f"{folder} belongs to somebody else: choose another cache folder")
    return folder


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards of at most ``limit`` bytes; copies in progress are not counted."""

    folder: Path
    limit: int

    def get(self, shard: Shard, address: str, copy: Callable[[Path], None]) -> Path:
        """Return the path of a shard, after ``copy`` has written it there if it was missing.

        One process copies a shard; others that want it wait. ``address`` is for messages.

        Raises:
            ShardError: the copy differs from the index, the shard exceeds the limit, or the folder
                cannot be written to; and errors that ``copy`` raises.
        """
        if shard.size > self.limit:
            raise ShardError(f"{address} has {shard.size} bytes, the cache may hold {self.limit}: allow it more")
        # Without a checksum, what is at the same address with the same size is the same shard.
        content = shard.sha256 or hashlib.sha256(f"{address} {shard.size}".encode()).hexdigest()
        path = self.folder / f"{content}.tar"
        with reported(f"cannot write to the cache {self.folder}", fix="; choose another one", to=LocalDiskError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _was_used_recently(path, shard.size):
                with FileLock(self._lock_of(path)):
                    # Another process may have copied it meanwhile.
                    if not _was_used_recently(path, shard.size) and not _is_whole(path, shard):
                        self._add(path, shard, address, copy)
            now = time.time_ns()  # finer than the kernel's own time stamps
            with contextlib.suppress(FileNotFoundError):  # evicted just now; its reader fetches it again
                os.utime(path, ns=(now, now))
        return path

    def _add(self, path: Path, shard: Shard, address: str, copy: Callable[[Path], None]) -> None:
        """Copy a shard; the caller holds its lock."""
        self._remove_abandoned(path)
        with FileLock(self.folder / EVICTION_LOCK):
            self._reserve(shard.size)
        partial = path.with_suffix(".partial")
        partial.mkdir()
        try:
            copied = partial / path.name
            copy(copied)
            if problem := shard.mismatch(copied):
                raise ShardError(f"damaged shard {address}: {problem}; copy it again")
            # The bytes reach the disk before the name does: a crash leaves no shard with holes.
            with open(copied, "rb") as file:
                os.fsync(file.fileno())
            # Again, because other processes may have added shards during the copy.
            with FileLock(self.folder / EVICTION_LOCK):
                self._reserve(shard.size)
                copied.replace(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _reserve(self, size: int) -> None:
        """Reserve bytes, evicting the least recently used shards; the caller holds the eviction lock."""
        shards = [(path, path.stat()) for path in self._named(CACHED)]
        excess = sum(state.st_size for _, state in shards) + size - self.limit
        for path, state in sorted(shards, key=lambda shard: shard[1].st_mtime_ns):
            if excess <= 0:
                break
            path.unlink()
            excess -= state.st_size

    def _remove_abandoned(self, own: Path) -> None:
        """Remove the copies of killed processes: their locks are free."""
        for partial in self._named(COPYING):
            if self._lock_of(partial) == self._lock_of(own):
                shutil.rmtree(partial, ignore_errors=True)
                continue
            with contextlib.suppress(Timeout), FileLock(self._lock_of(partial), blocking=False):
                shutil.rmtree(partial, ignore_errors=True)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        """Return the paths of our own files or folders of one kind."""
        return [self.folder / name for name in os.listdir(self.folder) if pattern.fullmatch(name)]

    def _lock_of(self, path: Path) -> Path:
        return self.folder / f".{path.name[:STRIPE]}.lock"


def _was_used_recently(path: Path, size: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        return state.st_size == size and time.time() - state.st_mtime <= TRUSTED
    return False


def _is_whole(path: Path, shard: Shard) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return shard.mismatch(path) is None
    return False
