"""Reads the ranges of a plan out of shards, and tells at once when a shard is not what the index says.

WebDataset ends a damaged tar without a word, so samples are counted here; and its default decoder
executes pickles, so images and labels are decoded here, by Pillow and ``int``, and nothing else is.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_tools import ShardError, ShardIndex
from data_tools.images import ImageError, decode_image
from dist_prune.data.plan import Range
from dist_prune.data.transforms import ImageTransform

SHUFFLED_SAMPLES = 4096
SHUFFLED_BYTES = 256 * 2**20  # encoded images; a buffer of big ones in each of many workers adds up

Batch = tuple[Tensor, Tensor]


class Failure(NamedTuple):
    """A ShardError on its way out of a worker: raised there, it would arrive wrapped in a traceback."""

    message: str


class Sample(NamedTuple):
    """An encoded image; ``place`` names shard and key for messages."""

    place: str
    image: bytes
    label: int


@dataclass(frozen=True)
class Source:
    """The split that a stream reads from."""

    index: ShardIndex
    split: str

    def samples(self, ranges: Iterable[Range]) -> Iterator[Sample]:
        """Read the samples of these ranges, in order.

        Raises:
            ShardError: a shard is missing, unreadable, or holds more or fewer samples than the
                index says; a sample lacks its image or has a label that is no class.
        """
        for part in ranges:
            yield from self._read(part)

    def _read(self, part: Range) -> Iterator[Sample]:
        split = self.index.split(self.split)
        path = self.index.root / split.filenames[part.shard]
        expected = split.shard_lengths[part.shard]
        found = 0
        for found, raw in enumerate(_raw_samples(path), 1):
            if found > expected:
                break
            if part.start < found <= part.stop:
                yield self._parse(path, raw)
            # What lies behind the range is counted by whoever reads the shard to its end.
            if found == part.stop and found < expected:
                return
        if found != expected:
            count = found if found < expected else f"more than {expected}"
            raise ShardError(
                f"damaged shard {path}: found {count} samples, expected {expected}; make or copy it again"
            )

    def _parse(self, path: Path, raw: dict[str, Any]) -> Sample:
        place = f"{path}, sample {raw['__key__']}"
        image = raw.get("jpg", raw.get("png"))
        if image is None or "cls" not in raw:
            raise ShardError(f"damaged shard: {place} lacks its image or its label; make or copy it again")
        text, classes = raw["cls"], len(self.index.class_names)
        label = int(text) if text.isdigit() else -1
        shown = text.decode(errors="replace")[:20]
        if not 0 <= label < classes:
            raise ShardError(f"{place}: label {shown!r} is none of the classes 0 to {classes - 1}")
        return Sample(place, image, label)


def _raw_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Group the members of a tar into samples with WebDataset; opens no pipes and no URLs."""
    try:
        with open(path, "rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))
    except FileNotFoundError as error:
        raise ShardError(f"missing shard {path}: the index lists it; make or copy it again") from error
    except (OSError, TarError, EOFError, ValueError) as error:
        # WebDataset appends the stream's name after " @ "; tarfile may add lines about every method.
        reason = str(error.args[0] if error.args else type(error).__name__).split(" @ ")[0]
        raise ShardError(f"cannot read shard {path}: {' '.join(reason.split())}") from error


@dataclass(frozen=True)
class BatchStream(IterableDataset[Batch | Failure]):
    """The batches of one rank; inside a DataLoader worker, that worker's share of them.

    ``ranges_of(workers, worker)`` is the plan. All randomness is a function of ``key`` (seed, epoch,
    rank), the worker and the number of the batch, so a batch can be had without those before it:
    ``skip_batches`` of the rank's batches are passed over without decoding them.
    """

    source: Source
    ranges_of: Callable[[int, int], list[Range]]
    transform: ImageTransform
    batch_size: int
    key: tuple[int, int, int] = (0, 0, 0)
    shuffled: bool = False
    skip_batches: int = 0

    def __iter__(self) -> Iterator[Batch | Failure]:
        info = get_worker_info()
        workers, number = (info.num_workers, info.id) if info else (1, 0)
        # The loader asks its first worker first: that one must have the first batch after the skipped.
        worker = (number + self.skip_batches) % workers
        try:
            yield from self._batches(workers, worker)
        except ShardError as error:
            yield Failure(str(error))

    def _batches(self, workers: int, worker: int) -> Iterator[Batch]:
        samples = self.source.samples(self.ranges_of(workers, worker))
        if self.shuffled:
            size = self._buffer_size()
            rng = random.Random(repr((*self.key, worker)))
            samples = shuffle(size, initial=size // 4, rng=rng)(samples)
        skipped = len(range(worker, self.skip_batches, workers))
        number = 0
        while chunk := list(islice(samples, self.batch_size)):
            if number >= skipped:
                yield self._decode(chunk, np.random.default_rng([*self.key, worker, number]))
            number += 1

    def _buffer_size(self) -> int:
        split = self.source.index.split(self.source.split)
        fitting = SHUFFLED_BYTES * split.num_samples // sum(split.sizes)
        return max(1, min(SHUFFLED_SAMPLES, fitting))

    def _decode(self, chunk: list[Sample], rng: np.random.Generator) -> Batch:
        images = []
        for sample in chunk:
            try:
                image = decode_image(sample.image, self.source.index.channels)
                images.append(self.transform.prepare(image, rng))
            except ImageError as error:
                raise ShardError(f"{sample.place}: {error}") from error
        return self.transform.finish(np.stack(images), rng), tensor([sample.label for sample in chunk])
