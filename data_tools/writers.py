"""The plan of all shards of a data set, and their two formats: encoded images with labels, or arrays of both."""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from data_tools.errors import ShardError, reported
from data_tools.images import ImageError, ImageStatistics, decode_pixels, inspect_image
from data_tools.sources.base import RawData, RawSplit
from data_tools.tar import BLOCK, HEADER_BYTES, LABEL, RAW, format_array

if TYPE_CHECKING:
    from webdataset import TarWriter

MEASURED_IMAGES = 5000  # the first ones of train decide mean and std
BAD_IMAGE = "; replace or remove it"
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
            with reported(split.origin(number), ImageError, fix=BAD_IMAGE):
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
            with reported(split.origin(number), ImageError, fix=BAD_IMAGE):
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
            with reported(split.origin(number), ImageError, fix=BAD_IMAGE):
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


@dataclass(frozen=True)
class ShardSet:
    """All shards of a data set, before they are written."""

    source: str
    seed: int
    raw: RawData
    writer: ShardWriter
    plans: tuple[ShardPlan, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the content of the shards, without reading image files."""
        raw = self.raw
        digest = hashlib.sha256(repr((raw.class_names, raw.class_titles, self.writer.format)).encode())
        for plan in self.plans:
            split = raw.splits[plan.split]
            digest.update(f"{plan.name}\n".encode())
            for number in plan.numbers:
                line = f"{split.identity(number)} {split.labels[number]}\n"
                digest.update(line.encode(errors="surrogateescape"))  # file names may be any bytes
        return digest.hexdigest()


def plan_shards(source: str, raw: RawData, seed: int, form: str, samples: int | None, limit: int | None) -> ShardSet:
    """Shuffle every split once, and divide it into shards of at most ``samples``, or of ``limit`` bytes."""
    writer = WRITERS[form](raw)
    plans = []
    for name, split in raw.splits.items():
        # RandomState's streams are frozen: the same shards with every version of numpy.
        order = np.random.RandomState(seed).permutation(len(split.labels)).tolist()
        for number, (start, stop) in enumerate(_cuts(split, order, writer, samples, limit)):
            file = f"{raw.name}-{name}-{number:06d}.tar"
            plans.append(ShardPlan(name, number, file, start, order[start:stop]))
    return ShardSet(source, seed, raw, writer, tuple(plans))


def _cuts(
    split: RawSplit, order: list[int], writer: ShardWriter, samples: int | None, limit: int | None
) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of every shard; one sample at least."""
    start, total = 0, writer.shard_bytes
    for position, number in enumerate(order):
        more = 0 if limit is None else writer.sample_bytes(split, number)
        full = position - start == samples if limit is None else total + more > limit
        if full and position > start:
            yield start, position
            start, total = position, writer.shard_bytes
        total += more
    yield start, len(order)
