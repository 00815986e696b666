"""Assignment of images to shards: shuffled once, split by number of samples or by bytes."""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawSplit
from data_tools.writers import WRITERS, ShardPlan, ShardWriter


@dataclass(frozen=True)
class ShardSize:
    """The most samples of a shard, or the most bytes (but one sample at least); the other is None."""

    samples: int | None
    bytes: int | None

    @staticmethod
    def of(samples: int | None, size: int | None, usual: int) -> "ShardSize":
        """Return the size that the user chose, or ``usual`` samples."""
        if samples is not None and size is not None:
            raise ShardError("--samples_per_shard and --bytes_per_shard exclude each other: give one of them")
        for name, value in (("samples", samples), ("bytes", size)):
            if value is not None and value < 1:
                raise ShardError(f"{name} per shard start at 1, not {value}")
        return ShardSize(usual if samples is None and size is None else samples, size)


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


def plan_shards(source: str, raw: RawData, seed: int, size: ShardSize, form: str) -> ShardSet:
    """Shuffle every split once, and divide it into shards."""
    writer = WRITERS[form](raw)
    plans = []
    for name, split in raw.splits.items():
        # RandomState's streams are frozen: the same shards with every version of numpy.
        order = np.random.RandomState(seed).permutation(len(split.labels)).tolist()
        for number, (start, stop) in enumerate(_cuts(split, order, size, writer)):
            file = f"{raw.name}-{name}-{number:06d}.tar"
            plans.append(ShardPlan(name, number, file, start, order[start:stop]))
    return ShardSet(source, seed, raw, writer, tuple(plans))


def _cuts(split: RawSplit, order: list[int], size: ShardSize, writer: ShardWriter) -> Iterator[tuple[int, int]]:
    """Yield the (start, stop) of every shard."""
    start, total = 0, writer.shard_bytes
    for position, number in enumerate(order):
        more = 0 if size.bytes is None else writer.sample_bytes(split, number)
        full = position - start == size.samples if size.bytes is None else total + more > size.bytes
        if full and position > start:
            yield start, position
            start, total = position, writer.shard_bytes
        total += more
    yield start, len(order)
