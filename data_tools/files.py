"""Files that appear whole or not at all, and the folder where data sets live by default."""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from data_tools.errors import ShardError

CHUNK = 2**20
PARTIAL = re.compile(r"\..+\.[0-9a-f]+\.partial")  # of atomic_writer


def data_home() -> Path:
    """Return the folder of named data sets: ``$DIST_PRUNE_DATA``, or ``~/.cache/dist_prune``."""
    chosen = os.environ.get("DIST_PRUNE_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dist_prune"


class HashingFile:
    """A write-only stream that counts and hashes what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Write ``data`` to the stream below; return the number of bytes."""
        self._hash.update(data)
        self.size += len(data)
        return self._stream.write(data)

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of everything written so far."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[HashingFile]:
    """Open a stream that becomes ``path`` when the block ends well and disappears when it does not.

    The bytes reach the disk before the name does, so that a crash never leaves half a file
    under its final name. The random part of the temporary name keeps two writers apart, and a lock tells
    ``remove_abandoned`` that this one lives.

    Raises:
        ShardError: the file cannot be written (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "wb") as stream:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield HashingFile(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ShardError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remove_abandoned(folder: Path) -> None:
    """Remove what writers that are gone left half-written in ``folder``."""
    for path in folder.glob(".*.partial"):
        if not PARTIAL.fullmatch(path.name):
            continue  # somebody else's
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer, if it lives, holds the lock
            path.unlink()
