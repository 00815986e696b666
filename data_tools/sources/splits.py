"""The three forms of labelled images: arrays in memory, files, and images packed in one large file."""

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from data_tools.errors import reported
from data_tools.images import ImageFacts, decode_pixels, encode_png, read_header


class RawSplit(ABC):
    """Labelled images that are read one at a time, in any order, also in forked processes."""

    # The class number of every image.
    labels: Sequence[int]

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return the encoded image."""

    @abstractmethod
    def size(self, number: int) -> int:
        """Return the bytes of the encoded image; of an array those of its pixels, a bound in practice."""

    @abstractmethod
    def origin(self, number: int) -> str:
        """Return where an image comes from, for error messages."""

    @abstractmethod
    def identity(self, number: int) -> str:
        """Return a text that identifies the image independently of the location of its source, cheaply."""

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Return pixels (H, W, ``channels``) in uint8."""
        return decode_pixels(self.read(number), channels)

    def facts(self, number: int) -> ImageFacts:
        """Return the properties of an image that need no decoding."""
        return read_header(self.read(number))


@dataclass(frozen=True)
class ArraySplit(RawSplit):
    """Images held in memory: pixels (N, H, W) or (N, H, W, 3) in uint8; encoded as PNG."""

    title: str
    array: np.ndarray
    labels: Sequence[int]

    def read(self, number: int) -> bytes:
        """Encode one image as PNG."""
        return encode_png(self.array[number])

    def size(self, number: int) -> int:
        """Return the bytes of the pixels."""
        return self.array[number].nbytes

    def origin(self, number: int) -> str:
        """Name the image by its position in the original order."""
        return f"{self.title}[{number}]"

    def identity(self, number: int) -> str:
        """Return a checksum of the pixels."""
        return f"{zlib.crc32(self.array[number].tobytes()):08x}"

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Return one image as it is; ``channels`` must be those it has."""
        return self.array[number].reshape(*self.array.shape[1:3], channels)

    def facts(self, number: int) -> ImageFacts:
        """Return the common shape."""
        height, width = self.array.shape[1:3]
        return ImageFacts(height, width, gray=self.array.ndim == 3, extension="png")


@dataclass(frozen=True)
class FileSplit(RawSplit):
    """Images in files: paths relative to ``root``."""

    root: Path
    paths: Sequence[str]
    labels: Sequence[int]

    def read(self, number: int) -> bytes:
        """Read one file as it is."""
        with reported(f"cannot read {self.origin(number)}"):
            return (self.root / self.paths[number]).read_bytes()

    def size(self, number: int) -> int:
        """Return the bytes of the file."""
        with reported(f"cannot read {self.origin(number)}"):
            return (self.root / self.paths[number]).stat().st_size

    def origin(self, number: int) -> str:
        """Name the file."""
        return str(self.root / self.paths[number])

    def identity(self, number: int) -> str:
        """Return path and size: reading all files to compare them would take as long as writing them."""
        return f"{self.paths[number]}:{self.size(number)}"

    def take(self, numbers: Sequence[int]) -> "FileSplit":
        """Return the split of the images with these numbers."""
        return FileSplit(self.root, [self.paths[n] for n in numbers], [self.labels[n] for n in numbers])


@dataclass(frozen=True)
class PackedSplit(RawSplit):
    """Images in one open file, each at its offset; ``names`` are for messages and identities."""

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
        """Read one image; without a file position, because forked processes share the open file."""
        with reported(f"cannot read {self.origin(number)}"):
            return os.pread(self.file.fileno(), self.sizes[number], self.offsets[number])

    def size(self, number: int) -> int:
        """Return the bytes of one image."""
        return self.sizes[number]

    def origin(self, number: int) -> str:
        """Name the image and its file."""
        return self.names[number]

    def identity(self, number: int) -> str:
        """Return name and size."""
        return f"{self.names[number]}:{self.sizes[number]}"
