"""Write access to shards: a local folder, or a URL of an object store."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data_tools.errors import ShardError
from data_tools.index import file_sizes
from data_tools.remote import RETRIES, Result, check_url, filesystem, is_url, with_retries

REQUESTS = 16  # at once, where many small files are read or removed
STAGING = re.compile(r"\.making-[0-9a-f]{8}")


@contextlib.contextmanager
def open_output(out: str | Path) -> Iterator["OutputStore"]:
    """Give the folder or URL that the user calls ``out``."""
    text = str(out).removeprefix("file://")
    if not text:
        raise ShardError("--out is empty: give a folder, or the URL of one")
    output = UrlOutput(text) if is_url(text) else FolderOutput(Path(text).expanduser())
    try:
        yield output
    finally:
        output.close()


class OutputStore(ABC):
    """A folder of shards to write to; all its files appear whole or not at all."""

    def __init__(self, root: Path | str, staging_dir: Path, retries: int) -> None:
        self.root = root
        # The local folder where shards are made; ``publish`` moves them to their place.
        self.staging_dir = staging_dir
        self._retries = retries

    def prepare(self) -> None:
        """Make the folders."""
        self.staging_dir.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Remove the staging folder."""
        shutil.rmtree(self.staging_dir, ignore_errors=True)

    def sizes(self) -> dict[str, int]:
        """Return name and size of every file; nothing if there is no folder."""
        return self._do("list", self._sizes)

    def read(self, name: str) -> bytes:
        """Return the content of a small file, nothing if there is none."""
        return self._do("read", self._read, name)

    def read_all(self, names: Iterable[str]) -> list[bytes]:
        """Read many small files."""
        return self._at_once(self.read, names)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""

        def stage_and_publish(name: str) -> None:
            (self.staging_dir / name).write_bytes(data)
            self._publish(name)

        self._do("write", stage_and_publish, name)

    def publish(self, name: str) -> None:
        """Move a finished shard from the staging folder to its place."""
        self._do("write", self._publish, name)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove files; those that are missing are passed over."""
        self._at_once(lambda name: self._do("remove", self._remove, name), names)

    def _at_once(self, action: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
        # One request after the other would take minutes for the sidecars of a large data set.
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(action, names))

    def _do(self, verb: str, action: Callable[..., Result], *names: str) -> Result:
        what = f"{verb} {'/'.join([str(self.root), *names])}"
        return with_retries(lambda: action(*names), what, self._retries)

    @abstractmethod
    def _sizes(self) -> dict[str, int]: ...

    @abstractmethod
    def _read(self, name: str) -> bytes: ...

    @abstractmethod
    def _publish(self, name: str) -> None: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class FolderOutput(OutputStore):
    """A local folder; the staging folder is inside, so that publishing is renaming."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder / f".making-{secrets.token_hex(4)}", retries=0)
        self._folder = folder
        self._lock = -1

    def prepare(self) -> None:
        """Make the folders, and remove the staging folders of killed writers."""
        self._do("make the folder", self._make_folders)

    def close(self) -> None:
        """Remove the staging folder, and release its lock."""
        super().close()
        if self._lock >= 0:
            os.close(self._lock)

    def _make_folders(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            # A writer that is alive holds the lock of its folder. Not every file system has locks:
            # there, abandoned folders stay.
            if STAGING.fullmatch(path.name):
                with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
                    lock = os.open(path, os.O_RDONLY)
                    opened.callback(os.close, lock)
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
        # Another writer may take the new folder for an abandoned one until it is locked.
        while not self.staging_dir.exists() or self._lock < 0:
            self.staging_dir.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._lock = os.open(self.staging_dir, os.O_RDONLY)
                with contextlib.suppress(OSError):
                    fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _sizes(self) -> dict[str, int]:
        if not self._folder.exists():
            return {}
        return file_sizes(self._folder)

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        return path.read_bytes() if path.exists() else b""

    def _publish(self, name: str) -> None:
        staged = self.staging_dir / name
        # The bytes reach the disk before the name does: a crash leaves no half file under a final name.
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        staged.replace(self._folder / name)

    def _remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


class UrlOutput(OutputStore):
    """A folder of an object store, where objects are put whole; the staging folder is a temporary one."""

    def __init__(self, url: str) -> None:
        if url.startswith(("http://", "https://")):
            raise ShardError(f"cannot write to {url}: make the shards in a folder, or in a bucket (s3://...)")
        check_url(url)
        root = url.rstrip("/")
        self._files, self._path = filesystem(root)
        super().__init__(root, Path(tempfile.mkdtemp(prefix="dist_prune-")), RETRIES)

    def _sizes(self) -> dict[str, int]:
        self._files.invalidate_cache()
        try:
            found: list[dict[str, Any]] = self._files.ls(self._path, detail=True)
        except FileNotFoundError:
            found = []
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in found}

    def _read(self, name: str) -> bytes:
        try:
            return self._files.cat_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return b""

    def _publish(self, name: str) -> None:
        staged = self.staging_dir / name
        self._files.put_file(str(staged), f"{self._path}/{name}")
        staged.unlink()

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._path}/{name}")
