"""The two formats of a shard: encoded images with their labels, or arrays of pixels and labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_tools.errors import ShardError
from data_tools.images import ImageError, decode_pixels, inspect_image
from data_tools.raw import HEADER_BYTES, RAW, format_array
from data_tools.sources.base import RawData, RawSplit
from data_tools.statistics import ImageStatistics
from data_tools.tar import BLOCK, LABEL

if TYPE_CHECKING:
    from webdataset import TarWriter

MEASURED_IMAGES = 5000  # the first ones of train decide mean and std
TAR_END = 10_240  # tars are padded to a multiple of this


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: the images ``numbers`` of a split, the first of them at position ``start``."""

    split: str
    number: int
    name: str
    start: int
    numbers: Sequence[int]

    def is_measured(self, offset: int) -> bool:
        """Return True if the pixels of the image at this offset of the shard count for mean and std."""
        return self.split == "train" and self.start + offset < MEASURED_IMAGES


class ShardWriter(ABC):
    """A format of shards."""

    format: Literal["files", "raw"]
    samples_per_shard: int  # unless the user chose a size
    shard_bytes: int  # of a shard besides its samples, at most

    def __init__(self, raw: RawData) -> None:
        self.raw = raw

    @abstractmethod
    def sample_bytes(self, split: RawSplit, number: int) -> int:
        """Return the bytes that an image takes in a shard."""

    @abstractmethod
    def write(self, tar: "TarWriter", plan: ShardPlan, split: RawSplit) -> ImageStatistics:
        """Write the members of one shard; return the statistics of its images."""


class FilesWriter(ShardWriter):
    """Two members per sample: the encoded image as it is, ``KEY.jpg`` or ``KEY.png``, and ``KEY.cls``."""

    format = "files"
    samples_per_shard = 1000
    shard_bytes = TAR_END

    def sample_bytes(self, split: RawSplit, number: int) -> int:
        """Return the bytes of two headers, the image and the label."""
        return 3 * BLOCK + -(-split.sizes[number] // BLOCK) * BLOCK

    def write(self, tar: "TarWriter", plan: ShardPlan, split: RawSplit) -> ImageStatistics:
        """Copy the images, after checking that each can be decoded."""
        statistics = ImageStatistics()
        for offset, number in enumerate(plan.numbers):
            data = split.read(number)
            with _naming(split, number):
                facts = inspect_image(data)
                statistics.see(facts)
                if plan.is_measured(offset):
                    statistics.measure(decode_pixels(data, 1 if facts.gray else 3))
            key = f"{plan.split}-{plan.start + offset:08d}"
            label = str(split.labels[number]).encode()
            tar.write({"__key__": key, facts.extension: data, LABEL: label})
        return statistics


class RawWriter(ShardWriter):
    """Two members per shard: ``KEY.images.npy``, uint8 (N, H, W, C), and ``KEY.labels.npy``, int64 (N,)."""

    format = "raw"
    samples_per_shard = 5000
    shard_bytes = TAR_END + 2 * (BLOCK + HEADER_BYTES + BLOCK)

    def __init__(self, raw: RawData) -> None:
        super().__init__(raw)
        self.height, self.width, self.channels = _common_shape(raw)

    def sample_bytes(self, split: RawSplit, number: int) -> int:
        """Return the bytes of the pixels and the label."""
        return self.height * self.width * self.channels + 8

    def write(self, tar: "TarWriter", plan: ShardPlan, split: RawSplit) -> ImageStatistics:
        """Decode the images and write them as one array."""
        statistics = ImageStatistics([[self.height, self.width]], all_gray=self.channels == 1)
        images = np.empty((len(plan.numbers), self.height, self.width, self.channels), np.uint8)
        for offset, number in enumerate(plan.numbers):
            with _naming(split, number):
                images[offset] = split.pixels(number, self.channels)
            if plan.is_measured(offset):
                statistics.measure(images[offset])
        labels = np.array([split.labels[number] for number in plan.numbers], dtype="<i8")
        key = f"{plan.split}-{plan.number:06d}"
        arrays = zip(RAW, map(format_array, (images, labels)), strict=True)
        tar.write({"__key__": key, **dict(arrays)})
        return statistics


WRITERS: dict[str, type[ShardWriter]] = {"files": FilesWriter, "raw": RawWriter}


def _common_shape(raw: RawData) -> tuple[int, int, int]:
    """Return (H, W, C) of all images; C is 1 if all are gray."""
    gray, first = True, None
    for split in raw.splits.values():
        for number in range(len(split.labels)):
            with _naming(split, number):
                facts = split.facts(number)
            size = (facts.height, facts.width)
            first = first or (size, split.origin(number))
            if size != first[0]:
                raise ShardError(
                    f"raw shards need images of one size: {first[1]} has {first[0]} pixels (height, width), "
                    f"{split.origin(number)} {size}; remove --format raw"
                )
            gray = gray and facts.gray
    assert first is not None, "sources have images"
    return *first[0], 1 if gray else 3


@contextmanager
def _naming(split: RawSplit, number: int) -> Iterator[None]:
    """Add the name of the image to an error."""
    try:
        yield
    except ImageError as error:
        raise ShardError(f"{split.origin(number)}: {error}; replace or remove it") from error
