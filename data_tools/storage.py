"""Where shards are: a local folder, a URL, or what a command gives; readers get local paths."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_tools.cache import ShardCache, default_cache_dir
from data_tools.index import LARGEST_INDEX, ShardIndex, parse_index, read_index
from data_tools.location import INDEX_NAME, Location, locate
from data_tools.origins import PIPE, CommandOrigin, Origin, UrlOrigin
from data_tools.remote import is_url, patiently

# A recipe's ``cache`` has the same defaults.
CACHE_BYTES = 16 * 10**9
TIMEOUT = 60.0
RETRIES = 5


class Storage(Protocol):
    """A place of shards. It can be pickled, and used in forked processes."""

    def read_index(self) -> ShardIndex:
        """Return the index, restricted to the shards that the user named.

        Raises:
            ShardError: no index there, or one that cannot be right.
        """

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """Return the local path of a shard.

        What comes from elsewhere has the size and the checksum given. Open the path at once: from a cache
        that is too small for all who read, it may be evicted at any time; then fetch it again.

        Raises:
            ShardError: it cannot be had, or is not what it should be.
        """

    def lend(self, name: str, size: int) -> contextlib.AbstractContextManager[Path]:
        """Give the local path of a shard as it is, unchecked and uncached, for the length of a block.

        Raises:
            ShardError: it cannot be had, or more than ``size`` bytes come from elsewhere.
        """


def open_storage(
    location: str | Path,
    cache_dir: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> Storage:
    """Open a place of shards.

    Args:
        location: a folder, its ``_info.json``, or some of its tars as ``FOLDER/X-{000000..000004}.tar``.
            The folder is a local one, a URL (``https://``, ``s3://``, ``gs://``, ``abfs://`` and all that
            fsspec knows), or part of a command that writes the shard (``pipe:ssh host cat FOLDER/...``):
            there the shard's name is replaced by those of the other shards and of the index.
        cache_dir: where shards from elsewhere are kept (default: a folder of the user's under the
            system's temporary folder). Local folders are read where they are.
        cache_bytes: the most that is kept; the shards used least recently go.
        timeout: seconds without a byte after which a transfer has failed.
        retries: how often a failed transfer is tried again, after longer and longer pauses.

    Raises:
        ShardError: a location that cannot be understood.
    """
    text = str(location).removeprefix("file://")
    if not text.startswith(PIPE) and not is_url(text):
        return LocalStorage(locate(text))
    origin: Origin
    origin, place = CommandOrigin.parse(text) if text.startswith(PIPE) else UrlOrigin.parse(text)
    cache = ShardCache(Path(cache_dir).expanduser() if cache_dir else default_cache_dir(), cache_bytes)
    return RemoteStorage(place, origin, cache, timeout, retries)


@dataclass(frozen=True)
class LocalStorage:
    """Shards in a local folder, which are used where they lie."""

    location: Location

    def read_index(self) -> ShardIndex:
        """Read the index in the folder."""
        return read_index(self.location.text)

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """Return the shard's path; what is wrong with the file shows when it is read."""
        return Path(self.location.folder).expanduser() / name

    @contextlib.contextmanager
    def lend(self, name: str, size: int) -> Iterator[Path]:
        """Give the shard's path."""
        yield self.fetch(name, size, "")


@dataclass(frozen=True)
class RemoteStorage:
    """Shards that are copied to a local cache, each whole or not at all."""

    location: Location
    origin: Origin
    cache: ShardCache
    timeout: float
    retries: int

    def read_index(self) -> ShardIndex:
        """Copy and read the index."""
        with self.lend(INDEX_NAME, LARGEST_INDEX) as path:
            data = path.read_bytes()
        address = self.origin.address(INDEX_NAME)
        return parse_index(data, address, self.location.folder).restrict(self.location)

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """Return the shard's path in the cache, after copying it there unless it is."""
        return self.cache.get(
            sha256, size, self.origin.address(name), lambda path: self._copy(name, path, size, whole=True)
        )

    @contextlib.contextmanager
    def lend(self, name: str, size: int) -> Iterator[Path]:
        """Copy a file to a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="dist_prune-") as folder:
            path = Path(folder) / name
            self._copy(name, path, size, whole=False)
            yield path

    def _copy(self, name: str, path: Path, size: int, whole: bool) -> None:
        """Copy a file of at most ``size`` bytes, or if ``whole`` of just so many."""
        numbers = itertools.count()

        def attempt() -> None:
            # A name of its own: an attempt that was given up may still write for a while.
            part = path.with_name(f"{path.name}.{next(numbers)}")
            try:
                self.origin.copy(name, part, self.timeout, size)
                found = part.stat().st_size
                if whole and found < size:
                    raise OSError(f"{found} of {size} bytes came")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

        patiently(attempt, f"read {self.origin.address(name)}", self.retries)
