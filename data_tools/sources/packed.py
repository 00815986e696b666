"""Encoded images packed in large files: tars inside of tars, or a file they were unpacked to."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_tools.errors import ShardError
from data_tools.sources.base import EncodedSplit


@dataclass(frozen=True)
class PackedSplit(EncodedSplit):
    """Images in one open file, each at its offset; ``names`` are for messages and to tell them apart."""

    file: IO[bytes]
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, name: str, label: int, offset: int, size: int) -> None:
        """Add an image."""
        self.names.append(name)
        self.labels.append(label)
        self.offsets.append(offset)
        self.sizes.append(size)

    def read(self, number: int) -> bytes:
        """Read one image, without a common position: forked processes share the open file."""
        try:
            return os.pread(self.file.fileno(), self.sizes[number], self.offsets[number])
        except OSError as error:
            raise ShardError(f"cannot read {self.origin(number)}: {error.strerror}") from error

    def size(self, number: int) -> int:
        """Return the bytes of one image."""
        return self.sizes[number]

    def origin(self, number: int) -> str:
        """Name the image and its file."""
        return self.names[number]

    def identity(self, number: int) -> str:
        """Return name and size."""
        return f"{self.names[number]}:{self.sizes[number]}"


@contextmanager
def open_tar(path: Path, inside: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar, or one that is open as a member of the tar at ``path``.

    Raises:
        ShardError: it is missing, compressed, damaged or cut off; also while the block reads it.
    """
    try:
        with tarfile.open(path, "r:", fileobj=inside) as tar:
            yield tar
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"cannot read {path}: {error}; expected the original, uncompressed tar") from error


def files_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar, without hidden ones."""
    for member in tar:
        if member.isfile() and not os.path.basename(member.name).startswith("."):
            yield member
