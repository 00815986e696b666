"""One shard, opened for random access to its samples.

Nothing is extracted and nothing is unpickled. Opening a shard finds out whether it agrees with the index.
"""

import os
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from data_tools import ShardError
from data_tools.raw import map_array, raw_arrays
from data_tools.tar import (
    BLOCK,
    LABEL,
    LARGEST_IMAGE,
    LONGEST_LABEL,
    Parts,
    images_of,
    is_sample,
    member_name,
    members,
    samples,
    split_name,
)

NOWHERE = (0, -1)  # (offset, size) of a missing part


class MissingShard(ShardError):
    """There is no such file."""


class OpenShard(ABC):
    """Samples 0 to ``len(shard)``, exclusive. Not to be shared with forked processes."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self._length = name, length

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def image(self, number: int) -> bytes | np.ndarray:
        """Return an encoded image, or its pixels (H, W, C), uint8; ShardError if it is missing or unreadable."""

    @abstractmethod
    def label(self, number: int) -> str:
        """Return a label as it is written; ShardError if it is missing or unreadable."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Return shard and key of a sample, for messages."""


def open_shard(path: Path, length: int, format: str, name: str | None = None) -> OpenShard:
    """Open a shard of the index's ``format`` (``files`` or ``raw``); ``name`` is what messages call it.

    Raises:
        MissingShard: there is no such file.
        ShardError: it is no tar that may be read, or holds more or fewer samples than ``length``.
    """
    name = name or str(path)
    try:
        return OPENERS[format](path, length, name)
    except FileNotFoundError as error:
        raise MissingShard(f"missing shard {name}: the index lists it; make or copy it again") from error
    except OSError as error:
        raise ShardError(f"cannot read shard {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ShardError(f"damaged shard {name}: {error}; make or copy it again") from error


class FilesShard(OpenShard):
    """Members ``KEY.jpg`` or ``KEY.png``, and ``KEY.cls``; others are ignored."""

    def __init__(self, path: Path, length: int, name: str) -> None:
        super().__init__(name, length)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as the shard is
        rows = [_row(parts) for _, parts in samples(members(self._file)) if is_sample(parts)]
        _expect(len(rows), length)
        # (N, 3, 2): of each sample the image, the label, and the first member; offset and size
        self._parts = np.array(rows, dtype=np.int64)

    def image(self, number: int) -> bytes:
        """Return an encoded image."""
        offset, size = self._part(number, 0)
        if size > LARGEST_IMAGE:
            raise ShardError(f"{self.place(number)}: an image of {size} bytes, {LARGEST_IMAGE} are allowed")
        return self._read(offset, size)

    def label(self, number: int) -> str:
        """Return the text of a label, or the beginning of one that is too long to be any."""
        offset, size = self._part(number, 1)
        return self._read(offset, min(size, LONGEST_LABEL)).decode(errors="replace")

    def place(self, number: int) -> str:
        """Return shard and key, which is in the header before the first member."""
        offset, _ = self._part(number, 2)
        key, _ = split_name(member_name(self._read(offset - BLOCK, BLOCK)))
        return f"{self.name}, sample {key}"

    def _part(self, number: int, part: int) -> tuple[int, int]:
        offset, size = self._parts[number, part].tolist()
        if (offset, size) == NOWHERE:
            raise ShardError(
                f"damaged shard: {self.place(number)} lacks its image or its label, or has two images; "
                "make or copy it again"
            )
        return offset, size

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise ShardError(f"cannot read shard {self.name}: {error.strerror}") from error
        if len(data) < size:
            raise ShardError(f"damaged shard {self.name}: it became shorter; make or copy it again")
        return data


class RawShard(OpenShard):
    """Members ``KEY.images.npy`` (N, H, W, C), uint8, and ``KEY.labels.npy`` (N,), int64; both are mapped."""

    def __init__(self, path: Path, length: int, name: str) -> None:
        super().__init__(name, length)
        with open(path, "rb", buffering=0) as file:
            images, labels = raw_arrays(members(file))
            self._images = map_array(file, images, np.dtype(np.uint8), 4)
            self._labels = map_array(file, labels, np.dtype(np.int64), 1)
        _expect(len(self._images), length)
        _expect(len(self._labels), length)

    def image(self, number: int) -> np.ndarray:
        """Return pixels (H, W, C), uint8, which are not to be written to."""
        return self._images[number]

    def label(self, number: int) -> str:
        """Return a label."""
        return str(self._labels[number])

    def place(self, number: int) -> str:
        """Return shard and number; raw samples have no keys."""
        return f"{self.name}, sample {number}"


OPENERS: dict[str, type[FilesShard] | type[RawShard]] = {"files": FilesShard, "raw": RawShard}


def _row(parts: Parts) -> list[tuple[int, int]]:
    images, label = images_of(parts), parts.get(LABEL)
    first = next(iter(parts.values()))
    return [images[0][1:] if len(images) == 1 else NOWHERE, label[1:] if label else NOWHERE, first[1:]]


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"found {found} samples, expected {expected}")
