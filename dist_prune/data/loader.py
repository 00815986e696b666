"""A data set in shards, and its batches for one rank."""

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data_tools import ShardError, ShardIndex, ShardStore
from dist_prune.config import AugmentConfig
from dist_prune.config.schedules import Ramp, Steps, side_at
from dist_prune.data import plan
from dist_prune.data.batches import Batches, ReadingFailed, Skipped, described, read
from dist_prune.data.decoded import NO_PLACE, DecodedSplit, open_decoded
from dist_prune.data.reader import Reader
from dist_prune.data.transforms import Batch, BatchTransform, ImageTransform, output_size
from dist_prune.errors import one_line

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Split:
    """Where the samples of a split are; rows: of each of its shards those that belong to it, None for all."""

    store: ShardStore
    index: ShardIndex
    name: str
    rows: list[np.ndarray] | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The number of samples in each of its shards."""
        return self.index.split(self.name).shard_lengths if self.rows is None else tuple(map(len, self.rows))


class Samples(NamedTuple):
    """What reads the samples of a split, by shard and row; decoded: most of them, if they are kept."""

    reader: Any  # with the methods of ``Reader``
    decoded: DecodedSplit | None = None
    # The number of the first sample of each shard; None where samples have no numbers.
    starts: np.ndarray | None = None


@dataclass(frozen=True)
class ImageData:
    """A data set in shards and how its images are read.

    Raises:
        ShardError: ``seed`` or ``workers`` is negative; the images differ in size, and there is no ``image_size``.
    """

    index: ShardIndex
    store: ShardStore
    # Of order and augmentation.
    seed: int = 1
    # Reading processes of each rank; with 0 the rank reads by itself.
    workers: int = 1
    # The side of the (then square) images in pixels, perhaps by epoch; None keeps theirs.
    image_size: int | Ramp | Steps | None = None
    # Of training images.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    channels_last: bool = False
    # The share of the training samples that is the test split, where the shards have none.
    eval_share: float = 0.0
    # Where the test split is, if it lies elsewhere; its classes are numbered as those of ``index``.
    eval_data: tuple[ShardStore, ShardIndex] | None = None
    # ``error``, or ``skip`` to count samples that cannot be read in ``skipped`` and leave them out.
    bad_data: str = "error"
    # The side of images in evaluation; None: the last of training.
    eval_size: int | None = None
    # The share of the side that evaluation keeps of the center; None: ``EVAL_CROP`` of photographs, else all.
    eval_crop: float | None = None
    # ``bilinear`` or ``bicubic``.
    interpolation: str = "bilinear"
    # The most bytes of decoded images that are kept on this machine.
    decoded_bytes: int = 0
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.workers < 0:
            raise ShardError(f"seed ({self.seed}) and workers ({self.workers}) must not be negative")
        for index in (self.index, *([self.eval_data[1]] if self.eval_data else [])):
            for epoch in (0, None):
                size = output_size(index, self._side(epoch))
        # The network is priced, and its model card written, for one size.
        if size != (own := output_size(self.index, self._side(None))):
            wrong = f"the images of {index.root} are {size}, those of {self.index.root} {own} pixels"
            raise ShardError(f"{wrong}: choose an image_size or eval_size, for example {min(own)}")
        if self.eval_share and "test" in self.index.splits:
            raise ShardError(f"{self.index.root} has a test split: eval_share must be 0")

    @functools.cached_property
    def _held_out(self) -> dict[str, list[np.ndarray]]:
        """The rows of each shard of train that are of train, and those that are of test."""
        parts = plan.hold_out(self.index.split("train").shard_lengths, self.eval_share) if self.eval_share else ()
        return dict(zip(("train", "test"), parts, strict=False))

    def _split(self, name: str) -> _Split:
        if name == "test" and self.eval_data:
            return _Split(*self.eval_data, name)
        if name in self._held_out:
            return _Split(self.store, self.index, "train", self._held_out[name])
        return _Split(self.store, self.index, name)

    @functools.cached_property
    def _decoded(self) -> dict[tuple[object, str], DecodedSplit | None]:
        """The decoded splits that are open; None where there is no place for them."""
        return {}

    def _open_decoded(self, source: _Split, rank: int, make: bool) -> DecodedSplit | None:
        """Return the decoded samples of a split; None if its shards are to be read."""
        key = source.index.root, source.name
        if key not in self._decoded:
            in_use = {split.path for split in self._decoded.values() if split}
            found = None
            try:
                found = open_decoded(source.store, source.index, source.name, self.decoded_bytes, in_use, make)
            except ShardError:  # which is reported when it is met in reading
                pass
            except NO_PLACE as error:
                if rank == 0:
                    reason = one_line(f"{source.name} images are decoded anew in every epoch: {error}")
                    tqdm.write(reason, file=sys.stderr)
            except Exception as error:  # an error that escaped here would leave the other ranks waiting
                raise ReadingFailed(f"reading failed: {described(error)}") from error
            if make or found:
                self._decoded[key] = found
            return found.only(source.rows) if found else None
        kept = self._decoded[key]
        return kept.only(source.rows) if kept else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, by label."""
        return self.index.class_names

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images in evaluation, which a network is for."""
        return self._shape(None)

    def train_shape(self, epoch: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the images in an epoch of training."""
        return self._shape(epoch)

    def _shape(self, epoch: int | None) -> tuple[int, int, int]:
        return (self.index.channels, *output_size(self.index, self._side(epoch)))

    def _side(self, epoch: int | None) -> int | None:
        """Return the side of images in an epoch of training, or in evaluation (``epoch`` None)."""
        if epoch is None:
            return self.eval_size or side_at(self.image_size, math.inf)
        return side_at(self.image_size, epoch)

    @property
    def normalization(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` per channel that images, in [0, 1], are normalized with."""
        return {"mean": list(self.index.mean), "std": list(self.index.std)}

    @property
    def resized_side(self) -> int | None:
        """The length of the shorter side in evaluation, in pixels; None: images are used whole."""
        index = self.eval_data[1] if self.eval_data else self.index
        return self._transform(index, None).resized_side

    def _transform(self, index: ShardIndex, epoch: int | None) -> ImageTransform:
        """Return the transform of images in an epoch of training, or in evaluation (``epoch`` None)."""
        return ImageTransform(
            index,
            self._side(epoch),
            self.augment,
            training=epoch is not None,
            eval_crop=self.eval_crop,
            interpolation=self.interpolation,
        )

    def read_as(self, class_names: Sequence[str], normalization: Mapping[str, Sequence[float]]) -> "ImageData":
        """Return the data as a network reads them that was trained on images with these classes and normalization.

        Raises:
            ShardError: they have other classes, or another number of channels.
        """
        mean, std = map(tuple, (normalization["mean"], normalization["std"]))
        # A network that takes gray images has one number.
        shape = self.index.image_shape and (len(mean), *self.index.image_shape[1:])
        seen = {"class_names": tuple(class_names), "class_titles": (), "mean": mean, "std": std, "image_shape": shape}
        trained = self.index.model_copy(update={**seen, "root": "what the network was trained on"})
        held = self.eval_data and (self.eval_data[0], self.eval_data[1].read_as(trained))
        return dataclasses.replace(self, index=self.index.read_as(trained), eval_data=held)

    def identity(self) -> dict[str, Any]:
        """Return the identity of these data, as plain JSON data: with another one, epochs have other batches."""
        names = {**self.index.splits, **self._held_out, **(self.eval_data[1].splits if self.eval_data else {})}
        fingerprints = [self.index.fingerprint, *([self.eval_data[1].fingerprint] if self.eval_data else [])]
        lengths = {name: list(self._split(name).lengths) for name in names}
        return {"fingerprint": " ".join(fingerprints), "shard_lengths": lengths}

    def num_samples(self, split: str) -> int | None:
        """Return the number of samples of a split; None if nobody has counted them. ShardError: no such split."""
        return sum(self._split(split).lengths)

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of optimizer steps of an epoch; PlanError if the train split is less than a batch."""
        return plan.steps_per_epoch(sum(self._split("train").lengths), global_batch)

    def train_batches(
        self,
        epoch: int,
        *,
        micro_batch: int,
        global_batch: int,
        rank: int,
        world_size: int,
        skip_steps: int = 0,
        views: int = 1,
        device: torch.device = CPU,
    ) -> Iterator[Batch]:
        """Iterate over one epoch of one rank, on ``device``.

        With more ``views``, a batch has the same images, augmented anew, view after view.
        Every rank gets the same number of micro-batches, full ones if nothing is left out. ``skip_steps``
        leaves out the first so many global batches and changes nothing about the others. Labels are
        probabilities (B, classes), float32, if images are mixed.

        Raises:
            PlanError: the batch sizes do not fit the data or the ranks (raised at once).
            ShardError: missing or damaged data (raised when it is reached).
            ReadingFailed: a worker was killed, or reading raised anything else.
        """
        train_plan = plan.TrainPlan(self._order(epoch, global_batch), micro_batch, rank, world_size)
        samples = self._train_samples(train_plan, epoch, rank, world_size, skip_steps)
        first = skip_steps * train_plan.accumulation
        return self._deliver("train", train_plan, samples, device, epoch=epoch, first=first, views=views)

    def _order(self, epoch: int, global_batch: int) -> plan.AnyOrder:
        return plan.Order(self._split("train").lengths, self.seed, epoch, global_batch)

    def _train_samples(
        self, chosen: plan.TrainPlan, epoch: int, rank: int, world_size: int, skip_steps: int
    ) -> Samples:
        return self._samples("train", chosen, rank, epoch)

    def _samples(
        self, split: str, chosen: plan.TrainPlan | plan.EvalPlan, rank: int, epoch: int | None, may_decode: bool = True
    ) -> Samples:
        """Return the samples of a plan in an epoch of training, or in evaluation (``epoch`` None)."""
        source = self._split(split)
        reader = Reader(source.store, source.index, source.name, chosen.shards, source.rows)
        starts = np.cumsum([0, *source.lengths])[:-1]
        if not self.decoded_bytes or not self._transform(source.index, epoch).keeps_whole:
            return Samples(reader, None, starts)
        return Samples(reader, self._open_decoded(source, rank, may_decode), starts)

    def samples_of_step(self, epoch: int, step: int, global_batch: int) -> dict[str, list[int]]:
        """Return the training samples of a global batch: their rows within each shard, by the shard's name."""
        train = self._split("train")
        part = plan.Order(train.lengths, self.seed, epoch, global_batch).part(step, 0, global_batch)
        names, rows = self.index.split("train").filenames, dict[str, list[int]]()
        for shard, row in sorted(zip(part.shards.tolist(), part.rows.tolist(), strict=True)):
            rows.setdefault(names[shard], []).append(int(train.rows[shard][row]) if train.rows else row)
        return rows

    def eval_batches(
        self,
        split: str,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        limit: int | None = None,
        device: torch.device = CPU,
    ) -> Iterator[Batch]:
        """Iterate over one rank's part of a split, without augmentation; as ``train_batches``.

        Over all ranks every sample comes once, so ranks may differ by a batch, and a rank may have none.
        ``limit`` keeps the first so many samples of the split, over all ranks together.

        Raises:
            ShardError: no such split (at once); missing or damaged data (when it is reached).
            ReadingFailed: as ``train_batches``.
        """
        chosen, samples = self._evaluation(split, batch_size, rank, world_size, limit)
        return self._deliver(split, chosen, samples, device)

    def _evaluation(
        self, split: str, batch_size: int, rank: int, world_size: int, limit: int | None
    ) -> tuple[plan.Plan, Samples]:
        lengths = self._split(split).lengths
        chosen = plan.EvalPlan(lengths, batch_size=batch_size, rank=rank, world_size=world_size, limit=limit)
        # For a few samples of many, all would be decoded.
        return chosen, self._samples(split, chosen, rank, None, may_decode=limit is None)

    def _deliver(
        self,
        split: str,
        chosen: plan.Plan,
        samples: Samples,
        device: torch.device,
        *,
        epoch: int = 0,
        first: int = 0,
        views: int = 1,
    ) -> Iterator[Batch]:
        """Read the batches of a plan from number ``first`` on and make them ready on the device."""
        training = isinstance(chosen, plan.TrainPlan)
        index = self._split(split).index
        on_images = self._transform(index, epoch if training else None)
        mixing = self.augment if training else AugmentConfig()
        on_batch = BatchTransform(index, on_images.size.width, mixing, self.channels_last, device)
        skip = self.bad_data == "skip"
        batches = Batches(chosen, samples.reader, on_images, self.seed, epoch, skip, views, *samples[1:])
        numbers, ended = range(first, len(batches)), 0
        with contextlib.closing(read(batches, numbers, self.workers, device.type == "cuda")) as arriving:
            for item in arriving:
                if isinstance(item, Exception):
                    raise item
                self.skipped.add(item.skipped)
                if len(item.labels):
                    yield Batch(*on_batch(item.pixels, item.labels, item.rng), item.samples)
                # Workers take turns. Those of a stream end at different times, after which their batches are empty.
                ended = 0 if len(item.labels) or item.skipped else ended + 1
                if ended == max(self.workers, 1):
                    return
                if training and not len(item.labels):  # the other ranks would wait for this one forever
                    raise ShardError(f"all {len(item.skipped)} images of a batch are unreadable: fix the data")
