"""Shards from elsewhere, kept in a local folder of limited size by all processes of a machine together.

A file is named by the SHA-256 of its content. While it is being copied, a folder stands for it whose name ends
in ``.partial`` and tells how many bytes it will have, so that all processes together keep to the limit. Other
files in the folder are the user's: they are neither counted nor touched.
"""

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from data_tools.errors import ShardError
from data_tools.files import sha256_of

SHARD = re.compile(r"[0-9a-f]{64}\.tar")
PARTIAL = re.compile(r"[0-9a-f]{64}\.([0-9]+)\.partial")
STRIPE = 2  # shards whose checksums agree in so many digits share a lock: so locks do not pile up
ROOM_LOCK = ".room.lock"
ROOM_PAUSE = 0.1  # seconds between two looks whether others are done and there is room
# A shard that nobody used for so many seconds is compared with its checksum before it is used again. 110 MB take
# 0.06 s: at every opening, each of 8 workers would lose a fifth of its time by it.
TRUSTED = 3600.0


def default_cache_dir() -> Path:
    """Make and return the user's folder under the system's temporary folder.

    Raises:
        ShardError: it cannot be made, or somebody else made it, who could change what is in it.
    """
    folder = Path(tempfile.gettempdir()) / f"dist_prune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise ShardError(f"cannot make {folder}: {error.strerror}; choose another cache folder") from error
    if not stat.S_ISDIR(state.st_mode):
        raise ShardError(f"{folder} is a link: remove it, or choose another cache folder")
    if state.st_uid != os.getuid():
        raise ShardError(f"{folder} belongs to somebody else: choose another cache folder")
    return folder


@dataclass(frozen=True)
class ShardCache:
    """A folder of shards, of at most ``limit`` bytes."""

    folder: Path
    limit: int

    def get(self, sha256: str, size: int, address: str, copy: Callable[[Path], None]) -> Path:
        """Return the path of a shard, after ``copy`` has brought it unless it is there.

        Only one process copies a shard; others wait for it, and for room where too many are on their way.
        ``address`` is for messages.

        Raises:
            ShardError: not the size or checksum that was asked for, or larger than the limit, or the
                folder cannot be written; and whatever ``copy`` raises.
        """
        if size > self.limit:
            raise ShardError(f"{address} has {size} bytes, the cache may hold {self.limit}: allow it more")
        path = self.folder / f"{sha256}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _is_used(path, size):
                with FileLock(self._lock_of(path)):
                    if not _is_used(path, size) and not _is_whole(path, size, sha256):
                        self._bring(path, sha256, size, address, copy)
                    _mark_used(path)
        except OSError as error:
            raise ShardError(f"cannot write to the cache {self.folder}: {error.strerror or error}") from error
        return path

    def _bring(self, path: Path, sha256: str, size: int, address: str, copy: Callable[[Path], None]) -> None:
        """Copy a shard that nobody else is copying: the caller holds its lock."""
        with self._room(sha256, size) as workshop:
            copied = workshop / path.name
            copy(copied)
            _check(copied, size, sha256, address)
            # The bytes reach the disk before the name does: a crash leaves no shard with holes.
            with open(copied, "rb") as file:
                os.fsync(file.fileno())
            copied.replace(path)

    @contextlib.contextmanager
    def _room(self, sha256: str, size: int) -> Iterator[Path]:
        """Give a folder to copy a shard to, as soon as it fits."""
        workshop = self.folder / f"{sha256}.{size}.partial"
        for left in self._partials():
            if left.name[:STRIPE] == sha256[:STRIPE]:
                shutil.rmtree(left, ignore_errors=True)  # its writer is gone, or would hold the lock
        while not self._reserve(workshop, size):
            time.sleep(ROOM_PAUSE)
        try:
            yield workshop
        finally:
            shutil.rmtree(workshop, ignore_errors=True)

    def _reserve(self, workshop: Path, size: int) -> bool:
        """Promise ``size`` bytes to a shard, for which those used least recently go; if others leave room."""
        with FileLock(self.folder / ROOM_LOCK):
            free = self.limit - sum(map(_promised, self._partials()))
            if free < size:
                self._remove_abandoned(workshop)
                return False
            shards = [(path, path.stat()) for path in self._named(SHARD)]
            free -= sum(state.st_size for _, state in shards)
            for path, state in sorted(shards, key=lambda shard: shard[1].st_mtime_ns):
                if free >= size:
                    break
                path.unlink()
                free += state.st_size
            workshop.mkdir(exist_ok=True)
            return True

    def _remove_abandoned(self, own: Path) -> None:
        """Remove what killed processes were copying: they cannot hold the locks any more."""
        for partial in self._partials():
            if partial.name[:STRIPE] != own.name[:STRIPE]:
                with contextlib.suppress(Timeout), FileLock(self._lock_of(partial), blocking=False):
                    shutil.rmtree(partial, ignore_errors=True)

    def _partials(self) -> list[Path]:
        return self._named(PARTIAL)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        """Return the paths of our own files or folders of one kind."""
        return [self.folder / name for name in os.listdir(self.folder) if pattern.fullmatch(name)]

    def _lock_of(self, path: Path) -> Path:
        return self.folder / f".{path.name[:STRIPE]}.lock"


def _promised(partial: Path) -> int:
    found = PARTIAL.fullmatch(partial.name)
    assert found is not None, "it was found by its name"
    return int(found[1])


def _is_used(path: Path, size: int) -> bool:
    """Whether the shard is there and was in use lately; then it counts as just used."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return False
    if state.st_size != size or time.time() - state.st_mtime > TRUSTED:
        return False
    _mark_used(path)
    return True


def _is_whole(path: Path, size: int, sha256: str) -> bool:
    try:
        return path.stat().st_size == size and sha256_of(path) == sha256
    except FileNotFoundError:
        return False


def _mark_used(path: Path) -> None:
    now = time.time_ns()  # finer than what the kernel would write
    with contextlib.suppress(FileNotFoundError):  # evicted just now; whoever opens it fetches it again
        os.utime(path, ns=(now, now))


def _check(path: Path, size: int, sha256: str, address: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise ShardError(f"damaged shard {address}: found {found} bytes, expected {size}; copy it again")
    if sha256_of(path) != sha256:
        raise ShardError(f"damaged shard {address}: its checksum differs from the index; copy it again")
