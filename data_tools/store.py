"""Read access to shards: in a local folder, at a URL, or through a command; readers get local paths."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.cache import ShardCache, default_cache_dir
from data_tools.errors import ShardError
from data_tools.index import INDEX_NAME, LARGEST_INDEX, Shard, ShardIndex, parse_index
from data_tools.remote import RETRIES, is_url, with_retries
from data_tools.transports import PIPE, CommandTransport, ShardSpec, Transport, UrlTransport

# A recipe's ``cache`` has the same defaults.
CACHE_BYTES = 16 * 10**9
TIMEOUT = 60.0


def open_store(
    location: str | Path,
    cache_dir: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
    timeout: float = TIMEOUT,
    retries: int = RETRIES,
) -> "ShardStore":
    """Open a folder of shards.

    Args:
        location: a folder, its ``_info.json``, or some of its tars as ``FOLDER/X-{000000..000004}.tar``.
            The folder is a local one, a URL (``https://``, ``s3://``, ``gs://``, ``abfs://`` and all that
            fsspec knows), or part of a command that writes the shard (``pipe:ssh host cat FOLDER/...``):
            the names of the other shards and of the index replace the shard's name there.
        cache_dir: where remote shards are kept (default: a folder of the user's under the system's
            temporary folder). Local shards are read where they are.
        cache_bytes: the most that is kept; the least recently used shards are evicted.
        timeout: seconds without a byte after which a transfer has failed.
        retries: how often a failed transfer is tried again, after longer and longer pauses.

    Raises:
        ShardError: a location that cannot be parsed.
    """
    text = str(location).removeprefix("file://")
    if not text.startswith(PIPE) and not is_url(text):
        return ShardStore(ShardSpec.parse(text))
    transport: Transport
    transport, spec = CommandTransport.parse(text) if text.startswith(PIPE) else UrlTransport.parse(text)
    cache = ShardCache(Path(cache_dir).expanduser() if cache_dir else default_cache_dir(), cache_bytes)
    return RemoteStore(spec, transport, cache, timeout, retries)


def read_index(location: str | Path) -> ShardIndex:
    """Read the index of a folder of shards; ``location`` as for ``open_store``."""
    return open_store(location).read_index()


@dataclass(frozen=True)
class ShardStore:
    """Shards in a local folder. It can be pickled, and used in forked processes."""

    spec: ShardSpec

    def read_index(self) -> ShardIndex:
        """Return the index, restricted to the shards that the user named.

        Every split of which any shard is named keeps those only; other splits stay.
        """
        folder = Path(self.spec.folder).expanduser()
        path = folder / INDEX_NAME
        if not folder.is_dir():
            raise ShardError(f"no such folder: {folder}")
        if not path.is_file():
            raise ShardError(f"no {INDEX_NAME} in {folder}: make shards there with dist-prune shards make")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ShardError(f"cannot read {path}: {error.strerror}") from error
        return parse_index(content, path, folder).restrict(self.spec.names, self.spec)

    def fetch(self, shard: Shard) -> Path:
        """Return the local path of a shard.

        A remote shard has the size and the checksum of the index; faults of a local one show when it is
        read. Open the path at once: a cache that is too small for all readers may evict it at any time;
        fetch it again then.

        Raises:
            ShardError: the shard cannot be fetched, or differs from the index.
        """
        return Path(self.spec.folder).expanduser() / shard.name

    @contextlib.contextmanager
    def temporary_copy(self, name: str, size: int) -> Iterator[Path]:
        """Give the local path of a file as it is, unchecked and uncached, for the length of a block."""
        yield Path(self.spec.folder).expanduser() / name


@dataclass(frozen=True)
class RemoteStore(ShardStore):
    """Remote shards, which are copied to a local cache, each whole or not at all."""

    transport: Transport
    cache: ShardCache
    timeout: float
    retries: int

    def read_index(self) -> ShardIndex:
        """Copy and read the index."""
        with self.temporary_copy(INDEX_NAME, LARGEST_INDEX) as path:
            data = path.read_bytes()
        index = parse_index(data, self.transport.address(INDEX_NAME), self.spec.folder)
        return index.restrict(self.spec.names, self.spec)

    def fetch(self, shard: Shard) -> Path:
        """Return the path of the shard in the cache; copy it there first if need be."""
        address = self.transport.address(shard.name)
        return self.cache.get(shard, address, lambda path: self._copy(shard.name, path, shard.size, whole=True))

    @contextlib.contextmanager
    def temporary_copy(self, name: str, size: int) -> Iterator[Path]:
        """Copy a file to a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="dist_prune-") as folder:
            path = Path(folder) / name
            self._copy(name, path, size, whole=False)
            yield path

    def _copy(self, name: str, path: Path, size: int, whole: bool) -> None:
        """Copy a file of at most ``size`` bytes, or of exactly that many if ``whole``."""
        numbers = itertools.count()

        def attempt() -> None:
            # Each attempt has its own file: an abandoned one may still write for a while.
            part = path.with_name(f"{path.name}.{next(numbers)}")
            try:
                self.transport.copy(name, part, self.timeout, size)
                found = part.stat().st_size
                if whole and found < size:
                    raise OSError(f"{found} of {size} bytes arrived")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

        with_retries(attempt, f"read {self.transport.address(name)}", self.retries)
