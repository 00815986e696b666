"""Batches of a data set for one rank: training epochs of equal length, evaluation of every sample once."""

import atexit
import functools
import signal
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from data_tools import ShardError, ShardIndex
from dist_prune.data import plan
from dist_prune.data.stream import Batch, BatchStream, Failure, Source
from dist_prune.data.transforms import Augment, ImageTransform, output_size

PREFETCHED_BATCHES = 4  # per worker
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ImageData:
    """A data set in shards and how its images are read.

    ``seed`` decides order and augmentation; ``workers`` is the number of reading processes of each
    rank (0: none, the rank reads by itself); ``image_size`` None keeps the size of the images.
    """

    index: ShardIndex
    seed: int
    workers: int
    image_size: int | None
    augment: Augment
    channels_last: bool

    @property
    def num_classes(self) -> int:
        """The number of classes; labels are 0 to this, exclusive."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self.index.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images of a batch."""
        return (self.index.channels, *output_size(self.index, self.image_size))

    @property
    def normalization(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` per channel that images, in [0, 1], are normalized with."""
        return {"mean": list(self.index.mean), "std": list(self.index.std)}

    def num_samples(self, split: str) -> int:
        """Return the number of samples of a split."""
        return self.index.split(split).num_samples

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of optimizer steps of an epoch.

        Raises:
            PlanError: the global batch exceeds the train split.
        """
        return plan.steps_per_epoch(self.num_samples("train"), global_batch)

    def train_batches(
        self,
        epoch: int,
        *,
        micro_batch: int,
        global_batch: int,
        rank: int,
        world_size: int,
        skip_batches: int = 0,
    ) -> Iterator[Batch]:
        """Iterate over one epoch of one rank: images (B, C, H, W) float32 and labels (B,) int64.

        Every rank gets the same number of full micro-batches. ``skip_batches`` leaves out the first
        so many of them and changes nothing about the others.

        Raises:
            PlanError: the batch sizes do not fit the data or the ranks (raised at once).
            ShardError: missing or damaged data (raised when it is reached).
        """
        lengths = self.index.split("train").shard_lengths
        plan.batches_per_rank(sum(lengths), world_size, micro_batch, global_batch)

        def ranges_of(workers: int, worker: int) -> list[plan.Range]:
            return plan.train_ranges(
                lengths,
                seed=self.seed,
                epoch=epoch,
                world_size=world_size,
                rank=rank,
                num_workers=workers,
                worker=worker,
                micro_batch=micro_batch,
                global_batch=global_batch,
            )

        stream = BatchStream(
            Source(self.index, "train"),
            ranges_of,
            self._transform(training=True),
            micro_batch,
            key=(self.seed, epoch, rank),
            shuffled=True,
            skip_batches=skip_batches,
        )
        return self._deliver(stream)

    def eval_batches(
        self, split: str, *, batch_size: int, rank: int, world_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """Iterate over one rank's part of a split, without augmentation.

        Over all ranks every sample comes once, so ranks may differ by a batch, and a rank may have none.
        ``limit`` keeps the first so many samples of the split, over all ranks together.

        Raises:
            ShardError: no such split (at once); missing or damaged data (when it is reached).
        """
        lengths = self.index.split(split).shard_lengths

        def ranges_of(workers: int, worker: int) -> list[plan.Range]:
            return plan.eval_ranges(
                lengths,
                world_size=world_size,
                rank=rank,
                num_workers=workers,
                worker=worker,
                batch_size=batch_size,
                limit=limit,
            )

        stream = BatchStream(
            Source(self.index, split), ranges_of, self._transform(training=False), batch_size
        )
        return self._deliver(stream)

    def _transform(self, training: bool) -> ImageTransform:
        return ImageTransform(self.index, self.image_size, self.augment, training, self.channels_last)

    def _deliver(self, stream: BatchStream) -> Iterator[Batch]:
        batches = _unwrapped(_loader(stream, self.workers))
        _unfinished.add(batches)
        return batches


def _loader(stream: BatchStream, workers: int) -> "DataLoader[Batch | Failure]":
    # Its own generator: the loader draws a number for its workers, by default from the global one.
    create = functools.partial(
        DataLoader[Batch | Failure],
        stream,
        batch_size=None,
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    if workers == 0:
        return create()
    return create(
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES,
        multiprocessing_context="fork",
        worker_init_fn=_start_worker,
    )


def _unwrapped(loader: "DataLoader[Batch | Failure]") -> Generator[Batch, None, None]:
    for item in loader:
        if isinstance(item, Failure):
            raise ShardError(item.message)
        yield item


def _unchanged(item: _Item) -> _Item:
    return item


def _start_worker(number: int) -> None:
    """Leave it to the rank to end its workers: a launcher that signals all would end them under it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


# A rank that ends in the middle of an epoch must end its workers first: at exit, Python waits for them
# after a SIGTERM, which they ignore. Registered after torch's own exit hook, this one runs before it.
_unfinished: "weakref.WeakSet[Generator[Batch, None, None]]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for batches in list(_unfinished):
        batches.close()
