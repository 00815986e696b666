"""Write access to shards: a local folder, or a URL of an object store."""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from data_tools.errors import ShardError
from data_tools.index import file_sizes
from data_tools.remote import RETRIES, Result, check_url, filesystem, is_url, with_retries

REQUESTS = 16  # at once, where many small files are read or removed
STAGING = re.compile(r"\.making-[0-9a-f]{8}")
ABSENT = (FileNotFoundError, NotADirectoryError)
# Held by another process, or a file system without locks, which filelock calls not implemented.
NO_LOCK = (OSError, NotImplementedError)


class OutputStore:
    """A folder of shards to write to; all its files appear whole or not at all.

    Shards are made in ``staging_dir``, a local folder; ``publish`` moves them to their place.
    """

    def __init__(self, out: str | Path) -> None:
        text = str(out).removeprefix("file://")
        if not text:
            raise ShardError("--out is empty: give a folder, or the URL of one")
        self._is_url = is_url(text)
        self.root: Path | str = text.rstrip("/") if self._is_url else Path(text).expanduser()
        self._files: Any
        if self._is_url:
            if text.startswith(("http://", "https://")):
                raise ShardError(f"cannot write to {text}: make the shards in a folder, or in a bucket (s3://...)")
            check_url(text)
            self._files, self._path = filesystem(str(self.root))
            self.staging_dir = Path(tempfile.mkdtemp(prefix="dist_prune-"))
        else:
            self._files, self._path = fsspec.filesystem("file"), str(self.root)
            # Inside, so that publishing is renaming.
            self.staging_dir = Path(self.root, f".making-{secrets.token_hex(4)}")
        self._lock = FileLock(f"{self.staging_dir}.lock")

    def __enter__(self) -> "OutputStore":
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.staging_dir, ignore_errors=True)
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release(force=True)

    def prepare(self) -> None:
        """Make the folders, and remove the staging folders of killed makers."""
        self._do("make the folder", self._make_folders)

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
        self._do("write", lambda name: (self.staging_dir / name).write_bytes(data), name)
        self.publish(name)

    def publish(self, name: str) -> None:
        """Move a finished file from the staging folder to its place."""
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
        return with_retries(lambda: action(*names), what, RETRIES if self._is_url else 0)

    def _make_folders(self) -> None:
        if self._is_url:
            return
        os.makedirs(self.root, exist_ok=True)
        # The lock comes before the folder: another maker takes a folder without one for abandoned.
        with contextlib.suppress(*NO_LOCK):
            self._lock.acquire(blocking=False)
        self.staging_dir.mkdir(exist_ok=True)
        for path in Path(self.root).iterdir():
            if STAGING.fullmatch(path.name) and path != self.staging_dir:
                with contextlib.suppress(*NO_LOCK), FileLock(f"{path}.lock", blocking=False) as lock:
                    shutil.rmtree(path, ignore_errors=True)
                    os.unlink(lock.lock_file)

    def _sizes(self) -> dict[str, int]:
        with contextlib.suppress(*ABSENT):
            if not self._is_url:
                return file_sizes(self.root)
            self._files.invalidate_cache()
            found = self._files.ls(self._path, detail=True)
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in found}
        return {}

    def _read(self, name: str) -> bytes:
        with contextlib.suppress(*ABSENT):
            return self._files.cat_file(f"{self._path}/{name}")
        return b""

    def _publish(self, name: str) -> None:
        staged = self.staging_dir / name
        if self._is_url:
            # Object stores put objects whole.
            self._files.put_file(str(staged), f"{self._path}/{name}")
            staged.unlink()
            return
        # The bytes reach the disk before the name does: a crash leaves no half file under a final name.
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        staged.replace(Path(self.root, name))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(*ABSENT):
            self._files.rm_file(f"{self._path}/{name}")
