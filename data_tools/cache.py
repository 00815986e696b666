"""Shards from elsewhere, kept in a local folder of limited size by all processes of a machine together.

A file is named by the SHA-256 of its content. While it is being copied, its name ends in ``.partial`` and
tells how many bytes it will have, so that all processes together keep to the limit.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from data_tools.errors import ShardError
from data_tools.files import sha256_of

PARTIAL = ".partial"
STRIPE = 2  # shards whose checksums agree in so many digits share a lock: so locks do not pile up


def default_cache_dir() -> Path:
    """Make and return the user's folder under the system's temporary folder.

    Raises:
        ShardError: it cannot be made, or somebody else made it, who could change what is in it.
    """
    folder = Path(tempfile.gettempdir()) / f"dist_prune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ShardError(f"cannot make {folder}: {error.strerror}; choose another cache folder") from error
    if folder.stat().st_uid != os.getuid():
        raise ShardError(f"{folder} belongs to somebody else: choose another cache folder")
    return folder


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, of at most ``limit`` bytes."""

    folder: Path
    limit: int

    def get(self, sha256: str, size: int, address: str, copy: Callable[[Path], None]) -> Path:
        """Return the path of a shard, after ``copy`` has brought it unless it is there.

        Only one process copies a shard; others wait for it. ``address`` is for messages.

        Raises:
            ShardError: not the size or checksum that was asked for, or larger than the limit, or the
                folder cannot be written; and whatever ``copy`` raises.
        """
        if size > self.limit:
            raise ShardError(f"{address} has {size} bytes, the cache may hold {self.limit}: allow it more")
        path = self.folder / f"{sha256}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _use(path, size):
                with FileLock(self.folder / f".{sha256[:STRIPE]}.lock"):
                    if not _use(path, size):
                        self._bring(path, sha256, size, address, copy)
        except OSError as error:
            raise ShardError(f"cannot write to the cache {self.folder}: {error.strerror or error}") from error
        return path

    def _bring(self, path: Path, sha256: str, size: int, address: str, copy: Callable[[Path], None]) -> None:
        """Copy a shard that nobody else is copying: the caller holds its lock."""
        for left in self.folder.glob(f"{sha256[:STRIPE]}*{PARTIAL}"):
            left.unlink()  # its writer is gone, or would hold the lock
        partial = self.folder / f"{sha256}.{size}{PARTIAL}"
        with FileLock(self.folder / ".room.lock"):
            self._make_room(size)
            partial.touch()
        try:
            copy(partial)
            _check(partial, size, sha256, address)
            partial.replace(path)
            _use(path, size)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the shards used least recently until ``size`` more bytes fit."""
        promised = sum(int(path.name.split(".")[-2]) for path in self.folder.glob(f"*{PARTIAL}"))
        shards = [(path, path.stat()) for path in self.folder.glob("*.tar")]
        held = sum(state.st_size for _, state in shards)
        for path, state in sorted(shards, key=lambda shard: shard[1].st_mtime_ns):
            if held + promised + size <= self.limit:
                return
            path.unlink()
            held -= state.st_size


def _use(path: Path, size: int) -> bool:
    """Whether the shard is there whole; if so, it counts as just used."""
    try:
        now = time.time_ns()  # finer than what the kernel would write
        os.utime(path, ns=(now, now))
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _check(path: Path, size: int, sha256: str, address: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise ShardError(f"damaged shard {address}: found {found} bytes, expected {size}; copy it again")
    if sha256_of(path) != sha256:
        raise ShardError(f"damaged shard {address}: its checksum differs from the index; copy it again")
