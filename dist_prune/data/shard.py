"""One shard, opened so that every sample can be had by its number.

Nothing is extracted and nothing is unpickled. A shard that is not what the index says is found on opening.
"""

import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO

import numpy as np

from data_tools import ShardError
from data_tools.contents import LARGEST_IMAGE
from dist_prune.data.tar import BLOCK, Member, member_name, members

KINDS = {"jpg": "image", "png": "image", "cls": "label"}  # by the member's extension
NOWHERE = (0, -1)  # (offset, size) of what a sample lacks


class MissingShard(ShardError):
    """There is no such file."""


class Shard(ABC):
    """Samples 0 to ``len(shard)``, exclusive. Not to be shared with forked processes."""

    def __init__(self, name: str, length: int) -> None:
        self.name, self._length = name, length

    def __len__(self) -> int:
        return self._length

    @abstractmethod
    def image(self, number: int) -> bytes | np.ndarray:
        """Return an encoded image, or its pixels (H, W, C), uint8.

        Raises:
            ShardError: the sample lacks it.
        """

    @abstractmethod
    def label(self, number: int) -> str:
        """Return a label as it is written.

        Raises:
            ShardError: the sample lacks it.
        """

    @abstractmethod
    def place(self, number: int) -> str:
        """Return shard and key of a sample, for messages."""


def open_shard(path: Path, length: int, format: str, name: str | None = None) -> Shard:
    """Open a shard of the index's ``format`` (``files`` or ``raw``); ``name`` is what messages call it.

    Raises:
        MissingShard: there is no such file.
        ShardError: it is no tar that may be read, or holds more or fewer samples than ``length``.
    """
    name = name or str(path)
    try:
        return FORMATS[format](path, length, name)
    except FileNotFoundError as error:
        raise MissingShard(f"missing shard {name}: the index lists it; make or copy it again") from error
    except OSError as error:
        raise ShardError(f"cannot read shard {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ShardError(f"damaged shard {name}: {error}; make or copy it again") from error


class FilesShard(Shard):
    """Members ``KEY.jpg`` or ``KEY.png``, and ``KEY.cls``; others are passed over."""

    def __init__(self, path: Path, length: int, name: str) -> None:
        super().__init__(name, length)
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as the shard is
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for member in members(self._file):
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            if extension in KINDS:
                if member.size > LARGEST_IMAGE:
                    raise ValueError(f"{member.name} has {member.size} bytes, {LARGEST_IMAGE} are allowed")
                samples.setdefault(key, {})[KINDS[extension]] = member.offset, member.size
        _expect(len(samples), length)
        parts = [[sample.get(kind, NOWHERE) for kind in ("image", "label")] for sample in samples.values()]
        self._parts = np.array(parts, dtype=np.int64)  # (N, 2, 2): image and label; offset and size

    def image(self, number: int) -> bytes:
        """Return an encoded image."""
        return self._read(number, 0)

    def label(self, number: int) -> str:
        """Return the text of a label."""
        return self._read(number, 1).decode(errors="replace")

    def place(self, number: int) -> str:
        """Return shard and key, which stands in the header before the first part that is there."""
        offset = max(self._parts[number, :, 0].tolist())
        header = os.pread(self._file.fileno(), BLOCK, offset - BLOCK)
        return f"{self.name}, sample {member_name(header).partition('.')[0]}"

    def _read(self, number: int, part: int) -> bytes:
        offset, size = self._parts[number, part].tolist()
        if (offset, size) == NOWHERE:
            raise ShardError(
                f"damaged shard: {self.place(number)} lacks its image or its label; make or copy it again"
            )
        return os.pread(self._file.fileno(), size, offset)


class RawShard(Shard):
    """Members ``KEY.images.npy`` (N, H, W, C), uint8, which is mapped, and ``KEY.labels.npy`` (N,), int64."""

    def __init__(self, path: Path, length: int, name: str) -> None:
        super().__init__(name, length)
        with open(path, "rb", buffering=0) as file:
            found = {member.name.partition(".")[2]: member for member in members(file)}
            if set(found) != {"images.npy", "labels.npy"}:
                raise ValueError(f"it holds {', '.join(found) or 'nothing'}, not images and labels")
            self._images = _map_array(file, found["images.npy"], np.dtype(np.uint8), 4)
            self._labels = _map_array(file, found["labels.npy"], np.dtype(np.int64), 1)
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


FORMATS: dict[str, type[FilesShard] | type[RawShard]] = {"files": FilesShard, "raw": RawShard}


def _map_array(file: IO[bytes], member: Member, dtype: np.dtype, dimensions: int) -> np.ndarray:
    """Map an array that ``numpy.save`` wrote; its header is read as a literal, and no object is allowed."""
    file.seek(member.offset)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{member.name} is no array of numpy's format 1.0")
    shape, fortran_order, found = np.lib.format.read_array_header_1_0(file)
    begin = file.tell()
    if (found, len(shape), fortran_order) != (dtype, dimensions, False):
        raise ValueError(
            f"{member.name} holds {found} in {len(shape)} dimensions, not {dtype} in {dimensions}"
        )
    if begin + math.prod(shape) * dtype.itemsize != member.offset + member.size:
        raise ValueError(f"{member.name} has not the size of its array")
    return np.asarray(np.memmap(file, dtype, "r", begin, shape))


def _expect(found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"found {found} samples, expected {expected}")
