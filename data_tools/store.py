"""Read access to shards: in a local folder, at a URL, or through a command; readers get local paths."""

import contextlib
import dataclasses
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_tools.cache import ShardCache, default_cache_dir
from data_tools.errors import LocalDiskError, ShardError, reported
from data_tools.index import INDEX_NAME, LARGEST_INDEX, LARGEST_SHARD, Shard, ShardIndex, parse_index
from data_tools.patterns import common_folder, expand_braces
from data_tools.remote import (
    FULL_DISK,
    PIPE,
    RETRIES,
    NotThere,
    check_url,
    copy_file,
    is_url,
    list_files,
    unsigned,
    with_retries,
)

# A recipe's ``cache`` has the same defaults.
CACHE_BYTES = 16 * 10**9
TIMEOUT = 60.0
# A word of a command that names shards or the index; quotes around it stay outside.
SHARD_WORD = re.compile(r"""[^\s'"]*?(?:\.tar|_info\.json)(?=[\s'"?]|$)""")


@dataclass(frozen=True)
class ShardSpec:
    """Location of shards as the user wrote it, and the names of the chosen ones (None: all).

    The address of a file is its name between ``before`` and ``after``. transport: "folder", "url" or "command".
    """

    text: str
    before: str
    after: str = ""
    names: frozenset[str] | None = None
    transport: str = "folder"

    def __str__(self) -> str:
        return self.text

    @property
    def root(self) -> str:
        """The folder or its URL; of a command its text."""
        return self.text if self.transport == "command" else self.before.removesuffix("/")

    def address(self, name: str) -> str:
        """Return the path, URL or command for a file."""
        return f"{self.before}{name}{self.after}"

    @staticmethod
    def parse(text: str) -> "ShardSpec":
        """Parse ``FOLDER``, ``FOLDER/_info.json`` or ``FOLDER/X-{000000..000004}.tar``; also of URLs and commands."""
        # Decided once, on what was typed: what follows file:// is a path, whatever it looks like.
        transport = "command" if text.startswith(PIPE) else "folder"
        if is_url(text) and transport == "folder":
            transport = "folder" if text.startswith("file://") else "url"
        text = text.removeprefix("file://")
        if not text:
            raise ShardError("the location of the shards is empty: give a folder, or the URL of one")
        begin, end = 0, len(text)
        if transport == "command":
            words = list(SHARD_WORD.finditer(text))
            if not words:
                raise ShardError(
                    f"{text} names no shards: the command must end in FOLDER/X-{{000000..000004}}.tar "
                    "or FOLDER/_info.json, as it would to write one of them to its standard output"
                )
            begin, end = words[-1].span()  # what comes before may be an option
        elif transport == "url":
            check_url(text)
            # Only web addresses have queries, which go with every file; in object stores "?" is part of a name.
            end = text.index("?") if text.startswith("http") and "?" in text else end
        folder, names = _parse_names(text[begin:end])
        if folder or not begin:
            folder = f"{folder or '.'}/"
        return ShardSpec(text, text[:begin] + folder, text[end:], names, transport)


def _parse_names(path: str) -> tuple[str, frozenset[str] | None]:
    """Return the folder of a path, and the names of the tars that its pattern stands for, if any."""
    folder, _, name = path.rpartition("/")
    if name == INDEX_NAME:
        return folder, None
    if not name.endswith(".tar"):
        return path.rstrip("/") or path, None
    names = expand_braces(path)
    folder = common_folder(names)
    return folder, frozenset(name.removeprefix(f"{folder}/") for name in names)


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
    spec = ShardSpec.parse(str(location))
    if spec.transport == "folder":
        return ShardStore(spec)
    cache = ShardCache(Path(cache_dir).expanduser() if cache_dir else default_cache_dir(), cache_bytes)
    return RemoteStore(spec, cache, timeout, retries)


def read_index(location: str | Path) -> ShardIndex:
    """Read the index of a folder of shards; ``location`` as for ``open_store``."""
    return open_store(location).read_index()


@dataclass(frozen=True)
class ShardStore:
    """Shards in a local folder. It can be pickled, and used in forked processes."""

    spec: ShardSpec

    @property
    def is_remote(self) -> bool:
        """True if shards are copied before they are read."""
        return self.spec.transport != "folder"

    def address_of(self, name: str) -> str:
        """Return the path, URL or command for a shard."""
        return str(Path(self.spec.root).expanduser() / name) if not self.is_remote else self.spec.address(name)

    def read_index(self) -> ShardIndex:
        """Return the index, restricted to the shards that the user named.

        Every split of which any shard is named keeps those only; other splits stay.
        """
        return self.parse_index(self.index_content())

    def index_content(self) -> bytes:
        """Return the content of the index, as it is; raise NotThere if there is none."""
        folder = Path(self.spec.root).expanduser()
        path = folder / INDEX_NAME
        if not folder.is_dir():
            raise ShardError(f"no such folder: {folder}")
        if not path.is_file():
            raise NotThere(f"no shards in {folder}: make some there with dist-prune shards make")
        with reported(f"cannot read {path}"):
            return path.read_bytes()

    def parse_index(self, content: bytes) -> ShardIndex:
        """Return an index of ours; ``read_index`` says how it is restricted."""
        folder = Path(self.spec.root).expanduser()
        return parse_index(content, folder / INDEX_NAME, folder).restrict(self.spec.names, self.spec)

    def fetch(self, shard: Shard) -> Path:
        """Return the local path of a shard.

        A remote shard has the size and the checksum of the index; faults of a local one show when it is
        read. Open the path at once: a cache that is too small for all readers may evict it at any time;
        fetch it again then.

        Raises:
            ShardError: the shard cannot be fetched, or differs from the index.
        """
        return Path(self.spec.root).expanduser() / shard.name

    @contextlib.contextmanager
    def temporary_copy(self, name: str, size: int = LARGEST_SHARD) -> Iterator[Path]:
        """Give the local path of a file of at most ``size`` bytes, as it is, for the length of a block."""
        yield Path(self.spec.root).expanduser() / name

    def keep(self, path: Path, shard: Shard) -> None:
        """Keep a temporary copy, so that ``fetch`` need not copy the shard again; it has a checksum."""

    def list_tars(self) -> list[str]:
        """Return the names of all tars in the folder."""
        return sorted(path.name for path in Path(self.spec.root).expanduser().glob("*.tar"))


@dataclass(frozen=True)
class RemoteStore(ShardStore):
    """Remote shards, which are copied to a local cache, each whole or not at all."""

    cache: ShardCache
    timeout: float
    retries: int

    def index_content(self) -> bytes:
        """Copy the index."""
        # A command fails for any reason. If it names tars, it may well have no index: it is not tried again.
        may_lack = self.spec.transport == "command" and self.spec.names
        store = dataclasses.replace(self, retries=0) if may_lack else self
        try:
            with store.temporary_copy(INDEX_NAME, LARGEST_INDEX) as path:
                return path.read_bytes()
        except ShardError as error:
            raise (NotThere(str(error)) if may_lack else error) from error

    def parse_index(self, content: bytes) -> ShardIndex:
        """Return an index of ours."""
        return parse_index(content, self._shown(INDEX_NAME), self.spec.root).restrict(self.spec.names, self.spec)

    def fetch(self, shard: Shard) -> Path:
        """Return the path of the shard in the cache; copy it there first if need be."""

        def copy(path: Path) -> None:
            self._copy(shard.name, path, shard.size, whole=True)

        return self.cache.get(shard, self._shown(shard.name), copy)

    @contextlib.contextmanager
    def temporary_copy(self, name: str, size: int = LARGEST_SHARD) -> Iterator[Path]:
        """Copy a file to a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="dist_prune-") as folder:
            path = Path(folder) / Path(name).name
            self._copy(name, path, size, whole=False)
            yield path

    def keep(self, path: Path, shard: Shard) -> None:
        """Move a temporary copy to the cache."""

        def move(copied: Path) -> None:
            shutil.move(path, copied)

        self.cache.get(shard, self._shown(shard.name), move)

    def list_tars(self) -> list[str]:
        """Return the names of all tars in the folder; ShardError where nobody can list it."""
        if self.spec.transport == "command":
            return []
        names = with_retries(
            lambda: list_files(self.spec.root, self.timeout), f"list {unsigned(self.spec.root)}", self.retries
        )
        return sorted(name for name in names if name.endswith(".tar"))

    def _copy(self, name: str, path: Path, size: int, whole: bool) -> None:
        """Copy a file of at most ``size`` bytes, or of exactly that many if ``whole``."""
        numbers = itertools.count()

        def attempt() -> None:
            # Each attempt has its own file: an abandoned one may still write for a while.
            part = path.with_name(f"{path.name}.{next(numbers)}")
            try:
                try:
                    copy_file(self.spec.address(name), part, self.timeout, size)
                except OSError as error:
                    if error.errno in FULL_DISK:
                        where = f"cannot write a copy to {path.parent}: {error.strerror}"
                        raise LocalDiskError(f"{where}; make room there, or choose another cache.folder") from error
                    raise
                found = part.stat().st_size
                if whole and found < size:
                    raise OSError(f"{found} of {size} bytes arrived")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

        with_retries(attempt, f"read {self._shown(name)}", self.retries)

    def _shown(self, name: str) -> str:
        return unsigned(self.spec.address(name))
