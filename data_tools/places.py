"""Where shards are put: a local folder, or a URL of an object store."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from data_tools.errors import ShardError
from data_tools.files import atomic_writer, remove_abandoned
from data_tools.remote import check_url, filesystem, is_url, patiently

RETRIES = 5


class Place(Protocol):
    """A place to put shards in; ``workshop`` is the folder where they are made."""

    workshop: Path

    @property
    def root(self) -> Path | str:
        """The folder or the URL."""

    def prepare(self) -> None:
        """Make the folder if need be."""

    def sizes(self) -> dict[str, int]:
        """Return the name and size of every file that is there."""

    def read(self, name: str) -> bytes:
        """Return the content of a small file, nothing if there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""

    def append(self, name: str, data: bytes) -> None:
        """Add to the end of a small file."""

    def publish(self, name: str) -> None:
        """Bring a whole shard from the workshop to the place."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


@contextlib.contextmanager
def open_place(out: str | Path) -> Iterator[Place]:
    """Give the place that the user calls ``out``: a folder or a URL.

    Raises:
        ShardError: nothing, or a URL that cannot be written to.
    """
    location = str(out).removeprefix("file://")
    if not location:
        raise ShardError("--out is empty: give a folder, or the URL of one")
    if not is_url(location):
        yield FolderPlace(Path(location).expanduser())
        return
    with tempfile.TemporaryDirectory(prefix="dist_prune-") as workshop:
        yield UrlPlace(location, Path(workshop))


class FolderPlace:
    """A local folder; shards are made where they stay, and named when they are whole."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.workshop = folder

    def prepare(self) -> None:
        """Make the folder, and remove what a killed writer left half-written."""
        with self._one_line("make the folder"):
            self.root.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.root)

    def sizes(self) -> dict[str, int]:
        """List the folder."""
        with self._one_line("list"), os.scandir(self.root) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}

    def read(self, name: str) -> bytes:
        """Read a file."""
        path = self.root / name
        with self._one_line(f"read {name} in"):
            return path.read_bytes() if path.exists() else b""

    def write(self, name: str, data: bytes) -> None:
        """Write a file beside its place, then rename it."""
        with atomic_writer(self.root / name) as file:
            file.write(data)

    def append(self, name: str, data: bytes) -> None:
        """Add to the end, and wait until it is on the disk."""
        with self._one_line(f"write {name} in"), open(self.root / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def publish(self, name: str) -> None:
        """Nothing to do: a whole shard is in its place."""

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._one_line(f"remove {name} in"):
            (self.root / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShardError(f"cannot {what} {self.root}: {error.strerror or error}") from error


class UrlPlace:
    """A folder of an object store, which puts whole objects; shards are made in a local folder first."""

    def __init__(self, url: str, workshop: Path) -> None:
        if url.startswith(("http://", "https://")):
            raise ShardError(f"cannot write to {url}: make the shards in a folder, or in a bucket (s3://...)")
        check_url(url)
        self.root = url.rstrip("/")
        self.workshop = workshop
        self._files, self._path = filesystem(self.root)
        self._texts: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Nothing to do: object stores have no folders."""

    def sizes(self) -> dict[str, int]:
        """List the folder anew."""

        def look() -> list[dict[str, Any]]:
            self._files.invalidate_cache()
            try:
                return self._files.ls(self._path, detail=True)
            except FileNotFoundError:
                return []

        found = patiently(look, f"list {self.root}", RETRIES)
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in found}

    def read(self, name: str) -> bytes:
        """Read an object."""

        def look() -> bytes:
            try:
                return self._files.cat_file(f"{self._path}/{name}")
            except FileNotFoundError:
                return b""

        return patiently(look, f"read {self.root}/{name}", RETRIES)

    def write(self, name: str, data: bytes) -> None:
        """Put an object."""
        self._texts[name] = data
        self._do("write", name, lambda path: self._files.pipe_file(path, data))

    def append(self, name: str, data: bytes) -> None:
        """Put the whole object again: this place wrote all of it."""
        self.write(name, self._texts[name] + data)

    def publish(self, name: str) -> None:
        """Put a shard, and remove it from the workshop."""
        made = self.workshop / name
        self._do("write", name, lambda path: self._files.put_file(str(made), path))
        made.unlink()

    def remove(self, name: str) -> None:
        """Remove an object."""

        def remove(path: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(path)

        self._do("remove", name, remove)

    def _do(self, verb: str, name: str, action: Callable[[str], Any]) -> None:
        patiently(lambda: action(f"{self._path}/{name}"), f"{verb} {self.root}/{name}", RETRIES)
