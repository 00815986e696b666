"""Batches of a data set for one rank: training epochs of equal length, evaluation of every sample once."""

import atexit
import functools
import signal
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from data_tools import ShardError, ShardIndex
from data_tools.storage import Storage
from dist_prune.config import AugmentConfig
from dist_prune.data import plan
from dist_prune.data.batches import Batches, Delivery, Failure
from dist_prune.data.reader import Reader
from dist_prune.data.skipped import Skipped
from dist_prune.data.transforms import Batch, ImageTransform, output_size, resized_side

PREFETCHED_BATCHES = 4  # per worker
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ImageData:
    """A data set in shards and how its images are read.

    ``seed`` decides order and augmentation; ``workers`` is the number of reading processes of each
    rank (0: none, the rank reads by itself); ``image_size`` None keeps the size of the images;
    ``bad_data`` says whether a sample that cannot be read is an ``error``, or is to be left out (``skip``)
    and told to ``skipped``.
    """

    index: ShardIndex
    storage: Storage
    seed: int = 1
    workers: int = 1
    image_size: int | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    channels_last: bool = False
    bad_data: str = "error"
    skipped: Skipped = field(default_factory=Skipped, compare=False)

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

    @property
    def resized_side(self) -> int | None:
        """To how many pixels the shorter side is scaled in evaluation; None: images are taken as a whole."""
        return resized_side(self.index, self.image_size, self.augment)

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
        skip_steps: int = 0,
    ) -> Iterator[Batch]:
        """Iterate over one epoch of one rank: images (B, C, H, W) float32 and labels (B,) int64.

        Every rank gets the same number of micro-batches, full ones if nothing is left out. ``skip_steps``
        leaves out the first so many global batches and changes nothing about the others. Labels are
        probabilities (B, classes), float32, if images are mixed.

        Raises:
            PlanError: the batch sizes do not fit the data or the ranks (raised at once).
            ShardError: missing or damaged data (raised when it is reached).
        """
        train_plan = plan.TrainPlan(
            self.index.split("train").shard_lengths,
            seed=self.seed,
            epoch=epoch,
            global_batch=global_batch,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
        )
        batches = self._batches("train", train_plan, epoch, training=True)
        return self._deliver(batches, skip_steps * train_plan.accumulation, may_be_empty=False)

    def eval_batches(
        self, split: str, *, batch_size: int, rank: int, world_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """Iterate over one rank's part of a split, without augmentation.

        Over all ranks every sample comes once, so ranks may differ by a batch, and a rank may have none.
        ``limit`` keeps the first so many samples of the split, over all ranks together.

        Raises:
            ShardError: no such split (at once); missing or damaged data (when it is reached).
        """
        eval_plan = plan.EvalPlan(
            self.index.split(split).shard_lengths,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            limit=limit,
        )
        return self._deliver(self._batches(split, eval_plan, 0, training=False), 0, may_be_empty=True)

    def _batches(
        self, split: str, chosen: plan.TrainPlan | plan.EvalPlan, epoch: int, training: bool
    ) -> Batches:
        reader = Reader(self.storage, self.index, split, chosen.shards)
        transform = ImageTransform(self.index, self.image_size, self.augment, training, self.channels_last)
        return Batches(chosen, reader, transform, self.seed, epoch, skip=self.bad_data == "skip")

    def _deliver(self, batches: Batches, first: int, may_be_empty: bool) -> Iterator[Batch]:
        items = _unwrapped(_loader(batches, first, self.workers), self.skipped, may_be_empty)
        _unfinished.add(items)
        return items


def _loader(batches: Batches, first: int, workers: int) -> "DataLoader[Delivery | Failure]":
    """Load the batches from number ``first`` on; the workers take turns."""
    create = functools.partial(
        DataLoader[Delivery | Failure],
        batches,
        batch_size=None,
        sampler=range(first, len(batches)),
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: the loader draws a number for its workers, by default from the global one.
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


def _unwrapped(
    loader: "DataLoader[Delivery | Failure]", skipped: Skipped, may_be_empty: bool
) -> Generator[Batch, None, None]:
    for item in loader:
        if isinstance(item, Failure):
            raise ShardError(item.message)
        skipped.add(item.skipped)
        if len(item.labels):
            yield item.images, item.labels
        elif not may_be_empty:  # ranks that wait for this one would wait for ever
            raise ShardError(f"nothing is left of a batch of {len(item.skipped)} images: mend the data")


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
