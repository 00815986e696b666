"""The data that the user names, and its batches for one rank; the embedded data set is made on first use."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from data_tools import SOURCES, ShardError, ShardIndex, ShardStore, make_shards, read_index
from data_tools.errors import RawShardsError, reported, suggestion
from data_tools.index import INDEX_NAME
from data_tools.open_shards import open_shards
from data_tools.sources.base import data_home
from dist_prune.config import AugmentConfig, CacheConfig
from dist_prune.data import plan
from dist_prune.data.batches import Batches, Skipped, read
from dist_prune.data.reader import Reader
from dist_prune.data.transforms import Batch, BatchTransform, ImageTransform, output_size
from dist_prune.files import temporary_beside

CPU = torch.device("cpu")
EMBEDDED = "digits"


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
    # The side of the (then square) images in pixels; None keeps theirs.
    image_size: int | None = None
    # Of training images.
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    channels_last: bool = False
    # The share of the training samples that is the test split, where the shards have none.
    eval_share: float = 0.0
    # ``error``, or ``skip`` to count samples that cannot be read in ``skipped`` and leave them out.
    bad_data: str = "error"
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.workers < 0:
            raise ShardError(f"seed ({self.seed}) and workers ({self.workers}) must not be negative")
        output_size(self.index, self.image_size)
        if self.eval_share and "test" in self.index.splits:
            raise ShardError(f"{self.index.root} has a test split: eval_share must be 0")

    @functools.cached_property
    def _held_out(self) -> dict[str, list[np.ndarray]]:
        """The rows of each shard of train that are of train, and those that are of test."""
        parts = plan.hold_out(self.index.split("train").shard_lengths, self.eval_share) if self.eval_share else ()
        return dict(zip(("train", "test"), parts, strict=False))

    def _lengths(self, split: str) -> tuple[int, ...]:
        """Return the number of samples of a split in each of its shards."""
        rows = self._held_out.get(split)
        return self.index.split(split).shard_lengths if rows is None else tuple(map(len, rows))

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
        """The length of the shorter side in evaluation, in pixels; None: images are used whole."""
        return ImageTransform(self.index, self.image_size, self.augment, training=False).resized_side

    def identity(self) -> dict[str, Any]:
        """Return the identity of these data, as plain JSON data: with another one, epochs have other batches."""
        lengths = {name: list(self._lengths(name)) for name in {**self.index.splits, **self._held_out}}
        return {"fingerprint": self.index.fingerprint, "shard_lengths": lengths}

    def num_samples(self, split: str) -> int:
        """Return the number of samples of a split."""
        return sum(self._lengths(split))

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of optimizer steps of an epoch; PlanError if the train split is less than a batch."""
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
        views: int = 1,
        device: torch.device = CPU,
    ) -> Iterator[Batch]:
        """Iterate over one epoch of one rank: images (B, C, H, W) float32 and labels (B,) int64, on ``device``.

        With more ``views``, images are (views * B, C, H, W): the same images, augmented anew, view after view.
        Every rank gets the same number of micro-batches, full ones if nothing is left out. ``skip_steps``
        leaves out the first so many global batches and changes nothing about the others. Labels are
        probabilities (B, classes), float32, if images are mixed.

        Raises:
            PlanError: the batch sizes do not fit the data or the ranks (raised at once).
            ShardError: missing or damaged data (raised when it is reached).
            ReadingFailed: a worker was killed, or reading raised anything else.
        """
        order = plan.Order(self._lengths("train"), self.seed, epoch, global_batch)
        train_plan = plan.TrainPlan(order, micro_batch, rank, world_size)
        first = skip_steps * train_plan.accumulation
        return self._deliver("train", train_plan, device, epoch, first, views)

    def samples_of_step(self, epoch: int, step: int, global_batch: int) -> dict[str, list[int]]:
        """Return the training samples of a global batch: their rows within each shard, by the shard's name."""
        split = self.index.split("train")
        part = plan.Order(self._lengths("train"), self.seed, epoch, global_batch).part(step, 0, global_batch)
        held, rows = self._held_out.get("train"), dict[str, list[int]]()
        for shard, row in sorted(zip(part.shards.tolist(), part.rows.tolist(), strict=True)):
            rows.setdefault(split.filenames[shard], []).append(int(held[shard][row]) if held else row)
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
        eval_plan = plan.EvalPlan(
            self._lengths(split), batch_size=batch_size, rank=rank, world_size=world_size, limit=limit
        )
        return self._deliver(split, eval_plan, device)

    def _deliver(
        self, split: str, chosen: plan.Plan, device: torch.device, epoch: int = 0, first: int = 0, views: int = 1
    ) -> Iterator[Batch]:
        """Read the batches of a plan from number ``first`` on and make them ready on the device."""
        training = isinstance(chosen, plan.TrainPlan)
        rows = self._held_out.get(split)
        reader = Reader(self.store, self.index, split if rows is None else "train", chosen.shards, rows)
        on_images = ImageTransform(self.index, self.image_size, self.augment, training)
        mixing = self.augment if training else AugmentConfig()
        on_batch = BatchTransform(self.index, self.input_shape[-1], mixing, self.channels_last, device)
        batches = Batches(chosen, reader, on_images, self.seed, epoch, skip=self.bad_data == "skip", views=views)
        numbers = range(first, len(batches))
        with contextlib.closing(read(batches, numbers, self.workers, device.type == "cuda")) as arriving:
            for item in arriving:
                if isinstance(item, Exception):
                    raise item
                self.skipped.add(item.skipped)
                if len(item.labels):
                    yield on_batch(item.pixels, item.labels, item.rng)
                elif training:  # the other ranks would wait for this one forever
                    raise ShardError(f"all {len(item.skipped)} images of a batch are unreadable: fix the data")


def open_data(location: str, *, cache: CacheConfig | None = None, **options: Any) -> ImageData:
    """Open a data set in shards.

    Args:
        location: a name under ``$DIST_PRUNE_DATA`` (default ``~/.cache/dist_prune``), a folder of
            shards, its ``_info.json``, tars as ``FOLDER/X-train-{000000..000004}.tar``, or any of these
            three as a URL or a ``pipe:`` command; locally also wildcards and lists (``find_shards``).
            ``digits`` is made under the first on first use.
        cache: where shards of URLs are kept, and how much room they may take.
        options: fields of ``ImageData``: seed, workers, image_size, augment, channels_last, eval_share, bad_data.

    Raises:
        ShardError: nothing there, or missing or damaged shards.
    """
    cache = cache or CacheConfig()
    store, index = open_shards(
        _find(location),
        cache_dir=cache.folder,
        cache_bytes=int(cache.gigabytes * 1e9),
        timeout=cache.timeout,
        retries=cache.retries,
    )
    data = ImageData(index, store, **options)
    if isinstance(data.index.root, Path) and data.bad_data == "error":
        data.index.check_files()
    return data


def _make_embedded(folder: Path) -> None:
    """Make the embedded data set if it is missing, or if an earlier version made it as raw shards."""
    advice = "; set DIST_PRUNE_DATA to a folder that you may write to"
    with reported(f"cannot make {folder}", (OSError, NotImplementedError), fix=advice):
        if _is_raw(folder):
            # Several processes may come here at once: the first one moves the old shards away.
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if _is_raw(folder):
                    old = temporary_beside(folder)
                    folder.rename(old)
                    shutil.rmtree(old)
        if not (folder / INDEX_NAME).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make_shards(EMBEDDED, None, folder)


def _is_raw(folder: Path) -> bool:
    try:
        read_index(folder)
    except RawShardsError:
        return True
    except ShardError:  # missing, or damaged, which its user reports
        return False
    return False


def absolute(location: str) -> str:
    """Return a location that means the same from every folder; names, URLs and commands stay as they are."""
    if "://" in location or location.startswith("pipe:"):
        return location
    found = _find(location)
    # A name refers to a folder below the data home, which may move.
    return location if found != location else os.path.abspath(location)


def _find(location: str) -> str:
    """Return the location of the data set of this name, if it is a name."""
    home = data_home()
    is_name = os.path.basename(location) == location and not location.endswith(".tar")
    if location == EMBEDDED:
        _make_embedded(home / EMBEDDED)
    if is_name and (home / location / INDEX_NAME).is_file():
        return str(home / location)
    datasets = [name for name, source in SOURCES.items() if source.is_dataset]
    if location in datasets and not (Path(location) / INDEX_NAME).is_file():
        raise ShardError(
            f"dataset {location!r} not found; create it with dist-prune shards make {location} --out {home / location}"
        )
    if not is_name or Path(location).exists():
        return location
    known = sorted({*datasets, *(index.parent.name for index in home.glob(f"*/{INDEX_NAME}"))})
    raise ShardError(
        f"no dataset {location!r}{suggestion(location, known)}: "
        f"expected a folder of shards or one of {', '.join(known)}"
    )
