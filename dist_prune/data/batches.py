"""The batches of one rank by number, read and augmented; unreadable samples end the run or are skipped."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data_tools import ShardError
from data_tools.images import ImageError
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.plan import Part, Plan
from dist_prune.data.reader import Reader
from dist_prune.data.transforms import ImageTransform
from dist_prune.data.workers import ReadingFailed


class WorkerBatch(NamedTuple):
    """A batch that a worker has read.

    pixels: (views * B, H, W, C), uint8, view after view; labels: (B,), int64; rng: of the first view;
    skipped: a message for each sample that was skipped.
    """

    pixels: Tensor
    labels: Tensor
    rng: BatchRng
    skipped: list[str]


@dataclass(frozen=True)
class Batches(Dataset[WorkerBatch | ShardError | ReadingFailed]):
    """The batches of a plan; an error takes the place of its batch: raised, it would come wrapped in a traceback.

    ``skip`` skips samples that cannot be read; ``views``: of each image, in a batch.
    """

    plan: Plan
    reader: Reader
    transform: ImageTransform
    seed: int
    epoch: int
    skip: bool
    views: int = 1

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> WorkerBatch | ShardError | ReadingFailed:
        try:
            return self._batch(self.plan.part(number))
        except ShardError as error:
            return ShardError(str(error))
        except Exception as error:  # an error that escaped here would leave the other ranks waiting
            return ReadingFailed(f"reading failed: {_described(error)}")

    def _batch(self, part: Part) -> WorkerBatch:
        rngs = [
            BatchRng(self.seed, self.epoch, part.step, part.first, len(part.rows), view) for view in range(self.views)
        ]
        pixels, labels, skipped = self._read(part, rngs)
        views = [self.transform.augment(view, rng) for view, rng in zip(pixels, rngs, strict=True)]
        # After the augmentation, whose random numbers go by the row.
        if skipped:
            views, labels = [view[labels >= 0] for view in views], labels[labels >= 0]
        whole = views[0] if self.views == 1 else np.concatenate(views)
        return WorkerBatch(torch.from_numpy(whole), torch.from_numpy(labels), rngs[0], skipped)

    def _read(self, part: Part, rngs: Sequence[BatchRng]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return pixels (views, B, H, W, C), labels (B,), -1 where a sample is skipped, and the reasons."""
        transform = self.transform
        skipped: list[str] = []
        pixels = np.zeros((len(rngs), len(part.rows), *transform.size, transform.channels), np.uint8)
        labels = np.full(len(part.rows), -1)
        crops = np.stack([transform.crops(rng) for rng in rngs])
        for row, (shard, number) in enumerate(zip(part.shards.tolist(), part.rows.tolist(), strict=True)):
            try:
                pixels[:, row], labels[row] = self._sample(shard, number, crops[:, row])
            except ShardError as error:
                if not self.skip:
                    raise
                skipped.append(str(error))
        return pixels, labels, skipped

    def _sample(self, shard: int, number: int, crops: np.ndarray) -> tuple[list[np.ndarray], int]:
        image, label = self.reader.sample(shard, number)
        try:
            return [self.transform.prepare(image, crop) for crop in crops], label
        except ImageError as error:
            raise ShardError(f"{self.reader.place(shard, number)}: {error}") from error


def _described(error: Exception) -> str:
    """Return type, message and place of an unexpected error in one line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} (in {last.name}, {Path(last.filename).name}, line {last.lineno})"


class Skipped:
    """The samples that this rank skipped."""

    def __init__(self) -> None:
        self._count = 0
        self._reported: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        """Count one sample for each message, and print on standard error those not reported before."""
        self._count += len(messages)
        for message in messages:
            if message not in self._reported:
                self._reported.add(message)
                tqdm.write(f"skipped: {message}", file=sys.stderr)

    def take(self) -> int:
        """Return the number of samples since the last call."""
        count, self._count = self._count, 0
        return count
