"""What every source hands to ``make_shards``: class names, and splits of labelled, encoded images."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.errors import ShardError
from data_tools.images import encode_png

# The images set aside for testing must not depend on how the shards are shuffled.
SPLIT_SEED = 20_260_101


class RawSplit(Protocol):
    """Labelled images that are read one at a time."""

    @property
    def labels(self) -> Sequence[int]:
        """The class number of every image."""

    def read(self, number: int) -> tuple[bytes, str]:
        """Return the encoded image and its extension, ``jpg`` or ``png``."""

    def origin(self, number: int) -> str:
        """Say where an image comes from, for error messages."""

    def identity(self, number: int) -> str:
        """Return what tells the image from others wherever its source lies, cheaply."""


@dataclass(frozen=True)
class RawData:
    """A data set as its source delivers it: ``splits`` holds ``train`` and ``test``."""

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, RawSplit]


class Source(Protocol):
    """A kind of raw data; ``SOURCES`` lists them all."""

    is_dataset: bool  # one particular data set, which can be had without naming a folder
    samples_per_shard: int

    def read(self, folder: Path | None, test_fraction: float | None) -> RawData:
        """Find the raw data and list its images.

        Raises:
            ShardError: the data is missing, incomplete or damaged.
        """


@dataclass(frozen=True)
class ArraySplit:
    """Images held in memory: pixels (N, H, W) or (N, H, W, 3) in uint8, written as PNG."""

    title: str
    pixels: np.ndarray
    labels: Sequence[int]

    def read(self, number: int) -> tuple[bytes, str]:
        """Encode one image as PNG."""
        return encode_png(self.pixels[number]), "png"

    def origin(self, number: int) -> str:
        """Name the image by its place in the original order."""
        return f"{self.title}[{number}]"

    def identity(self, number: int) -> str:
        """Return a checksum of the pixels."""
        return f"{zlib.crc32(self.pixels[number].tobytes()):08x}"


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
