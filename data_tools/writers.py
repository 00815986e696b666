"""The plan of all shards of a data set, and how one is written: two members for each sample, image and label."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_tools.errors import reported
from data_tools.images import ImageError, ImageStatistics, decode_pixels, inspect_image
from data_tools.sources.base import RawData, RawSplit
from data_tools.tar import BLOCK, LABEL

if TYPE_CHECKING:
    from webdataset import TarWriter

SAMPLES_PER_SHARD = 1000  # unless source or user choose a number
MEASURED_IMAGES = 5000  # the first ones of train decide mean and std
BAD_IMAGE = "; replace or remove it"
TAR_END = 10_240  # tars are padded to a multiple of this


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: the images ``numbers`` of a split, the first of them at position ``start``."""

    split: str
    name: str
    start: int
    numbers: Sequence[int]

    def is_measured(self, offset: int) -> bool:
        """Return True if the pixels of the image at this offset of the shard count for mean and std."""
        return self.split == "train" and self.start + offset < MEASURED_IMAGES


@dataclass(frozen=True)
class ShardSet:
    """All shards of a data set, before they are written."""

    source: str
    seed: int
    raw: RawData
    plans: tuple[ShardPlan, ...]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides the content of the shards, without reading image files."""
        raw = self.raw
        # "files" is a format of earlier versions, whose shards have these fingerprints.
        digest = hashlib.sha256(repr((raw.class_names, raw.class_titles, "files")).encode())
        for plan in self.plans:
            split = raw.splits[plan.split]
            digest.update(f"{plan.name}\n".encode())
            for number in plan.numbers:
                line = f"{split.identity(number)} {split.labels[number]}\n"
                digest.update(line.encode(errors="surrogateescape"))  # file names may be any bytes
        return digest.hexdigest()

    def write(self, tar: "TarWriter", plan: ShardPlan) -> ImageStatistics:
        """Write ``KEY.jpg`` or ``KEY.png``, the encoded image as it is, and ``KEY.cls`` for each sample of a shard.

        Raises:
            ShardError: an image cannot be decoded.
        """
        split, statistics = self.raw.splits[plan.split], ImageStatistics()
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


def plan_shards(source: str, raw: RawData, seed: int, samples: int | None, limit: int | None) -> ShardSet:
    """Shuffle every split once, and divide it into shards of at most ``samples``, or of ``limit`` bytes."""
    plans = []
    for name, split in raw.splits.items():
        # RandomState's streams are frozen: the same shards with every version of numpy.
        order = np.random.RandomState(seed).permutation(len(split.labels)).tolist()
        for number, (start, stop) in enumerate(_cuts(split, order, samples, limit)):
            file = f"{raw.name}-{name}-{number:06d}.tar"
            plans.append(ShardPlan(name, file, start, order[start:stop]))
    return ShardSet(source, seed, raw, tuple(plans))


def _cuts(split: RawSplit, order: list[int], samples: int | None, limit: int | None) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of every shard; one sample at least."""
    start, total = 0, TAR_END
    for position, number in enumerate(order):
        more = 0 if limit is None else sample_bytes(split, number)
        full = position - start == samples if limit is None else total + more > limit
        if full and position > start:
            yield start, position
            start, total = position, TAR_END
        total += more
    yield start, len(order)


def sample_bytes(split: RawSplit, number: int) -> int:
    """Return the bytes that an image takes in a shard: two headers, the image and the label."""
    return 3 * BLOCK + -(-split.sizes[number] // BLOCK) * BLOCK
