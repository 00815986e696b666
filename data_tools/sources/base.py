"""What every source hands to ``make_shards``: class names, and splits of labelled images."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.errors import ShardError
from data_tools.images import ImageFacts, decode_pixels, encode_png, read_header

# The images set aside for testing must not depend on how the shards are shuffled.
SPLIT_SEED = 20_260_101


class RawSplit(Protocol):
    """Labelled images that are read one at a time, in any order, also in forked processes."""

    @property
    def labels(self) -> Sequence[int]:
        """The class number of every image."""

    def read(self, number: int) -> bytes:
        """Return the encoded image."""

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Return pixels (H, W, ``channels``) in uint8."""

    def facts(self, number: int) -> ImageFacts:
        """Return what can be said of an image without decoding it."""

    def size(self, number: int) -> int:
        """Return the bytes of the encoded image; of an array those of its pixels, a bound in practice."""

    def origin(self, number: int) -> str:
        """Say where an image comes from, for error messages."""

    def identity(self, number: int) -> str:
        """Return what tells the image from others wherever its source lies, cheaply."""


@dataclass(frozen=True)
class RawData:
    """A data set as its source delivers it: ``splits`` holds ``train`` and ``test``.

    ``class_titles`` are readable names where ``class_names`` are codes, or nothing.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, RawSplit]
    class_titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """How to read: ``test_fraction`` is to be set aside; ``scratch`` is a folder with room for as much as
    the raw data, made when it is used; ``progress`` shows a bar where reading takes long.
    """

    test_fraction: float | None
    scratch: Path
    progress: bool


class Source(Protocol):
    """A kind of raw data; ``SOURCES`` lists them all."""

    @property
    def is_dataset(self) -> bool:
        """Whether it is one particular data set, which can be had without naming a folder."""

    @property
    def arrays(self) -> bool:
        """Whether it holds pixels rather than encoded images."""

    @property
    def samples_per_shard(self) -> int | None:
        """A number of samples that suits it, or None for what suits the format."""

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Find the raw data and list its images.

        Raises:
            ShardError: the data is missing, incomplete or damaged.
        """


@dataclass(frozen=True)
class ArraySplit:
    """Images held in memory: pixels (N, H, W) or (N, H, W, 3) in uint8; encoded as PNG."""

    title: str
    array: np.ndarray
    labels: Sequence[int]

    def read(self, number: int) -> bytes:
        """Encode one image as PNG."""
        return encode_png(self.array[number])

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Return one image as it is; ``channels`` must be those it has."""
        return self.array[number].reshape(*self.array.shape[1:3], channels)

    def facts(self, number: int) -> ImageFacts:
        """Return the common shape."""
        height, width = self.array.shape[1:3]
        return ImageFacts(height, width, gray=self.array.ndim == 3, extension="png")

    def size(self, number: int) -> int:
        """Return the bytes of the pixels."""
        return self.array[number].nbytes

    def origin(self, number: int) -> str:
        """Name the image by its place in the original order."""
        return f"{self.title}[{number}]"

    def identity(self, number: int) -> str:
        """Return a checksum of the pixels."""
        return f"{zlib.crc32(self.array[number].tobytes()):08x}"


class EncodedSplit(ABC):
    """Encoded images, wherever they lie."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return the encoded image."""

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Decode one image."""
        return decode_pixels(self.read(number), channels)

    def facts(self, number: int) -> ImageFacts:
        """Read the header of one image."""
        return read_header(self.read(number))


def stratified_split(labels: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Divide positions into (train, test), each class in proportion, always in the same way.

    The test part has ``round(fraction * N)`` positions, unless that would leave a class without
    an image to train on. Positions keep their order within both parts.
    """
    classes, counts = np.unique(np.asarray(labels), return_counts=True)
    wanted = counts * fraction
    quota = np.floor(wanted).astype(int)
    # Largest remainders first; the stable sort settles ties by class number.
    missing = round(fraction * len(labels)) - int(quota.sum())
    quota[np.argsort(quota - wanted, kind="stable")[:missing]] += 1
    quota = np.minimum(quota, counts - 1)
    # RandomState's streams are frozen: the same test set with every version of numpy.
    rng = np.random.RandomState(SPLIT_SEED)
    is_test = np.zeros(len(labels), dtype=bool)
    for label, number in zip(classes, quota, strict=True):
        positions = np.flatnonzero(np.asarray(labels) == label)
        is_test[rng.permutation(positions)[:number]] = True
    return np.flatnonzero(~is_test).tolist(), np.flatnonzero(is_test).tolist()


def refuse_test_fraction(test_fraction: float | None, owner: str) -> None:
    """Raise a ShardError if a test fraction is asked of data that has a test split of its own."""
    if test_fraction is not None:
        raise ShardError(f"{owner} has its own test images: leave out --test_fraction")
