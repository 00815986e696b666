"""The order of an epoch: which rank reads which sample when. Pure arithmetic on shard lengths, without files.

The order is a function of (seed, epoch, shard lengths, global batch) alone:

- The *sequence*: all shards in a random order, rotated by a random offset, truncated to whole global batches. So
  each epoch drops another tail.
- The sequence is divided into *partitions*, and a global batch takes the next few samples of each: as many of one as
  of another, or one more. So a batch mixes many parts of the data, while ranks, which take contiguous parts of it,
  mostly read the shards of their own partitions.
- Within a partition, *shuffle blocks* of two mean shard lengths are permuted, each by a key of its own. So any
  global batch can be computed without those before it, and reading stays within a few shards at a time.
  Partitions begin new blocks one after another, so that they do not all need new shards at once.

Ranks divide global batches, and workers alternate; neither changes the content of a global batch.
"""

import functools
import sys
from typing import Any, NamedTuple

import numpy as np

from data_tools import ShardError
from dist_prune.data.batch_rng import below, permutation

MAX_PARTITIONS = 16
BLOCK_SHARDS = 2


class PlanError(ShardError, ValueError):
    """Batch sizes that do not fit the data or the number of ranks."""


class Part(NamedTuple):
    """One batch of one rank: samples ``rows`` (B,) of ``shards`` (B,), both int64.

    In training they are the rows from ``first`` on of global batch number ``step``.
    """

    step: int
    first: int
    shards: np.ndarray
    rows: np.ndarray


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Return the number of whole global batches; PlanError if there is none."""
    if global_batch < 1:
        raise PlanError(f"the global batch size is {global_batch}: it must be at least 1")
    if global_batch > num_samples:
        raise PlanError(f"the global batch size {global_batch} exceeds the {num_samples} samples there are")
    return num_samples // global_batch


def hold_out(shard_lengths: tuple[int, ...], share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Divide the samples of a split: the rows of each shard that stay, and those that are held out.

    A function of the lengths and the share alone, so that runs of all seeds hold out the same.

    Raises:
        PlanError: nothing would stay, or nothing would be held out.
    """
    total = sum(shard_lengths)
    count = round(share * total)
    if not 0 < count < total:
        raise PlanError(f"eval_share={share:g} of {total} samples is {count}: both parts need some")
    is_held = np.zeros(total, bool)
    is_held[permutation(total, "held out")[:count]] = True
    shards = np.split(is_held, np.cumsum(shard_lengths)[:-1])
    return [np.flatnonzero(~shard) for shard in shards], [np.flatnonzero(shard) for shard in shards]


class Order:
    """The global batches of one epoch of training."""

    def __init__(self, shard_lengths: tuple[int, ...], seed: int, epoch: int, global_batch: int) -> None:
        total = sum(shard_lengths)
        self.steps = steps_per_epoch(total, global_batch)
        self.global_batch = global_batch
        self._key = seed, epoch
        self.sequence = ShardSequence(
            shard_lengths,
            permutation(len(shard_lengths), "shards", seed, epoch),
            # This key and "window" below keep their old names: others would be another order.
            below(total, "turn", seed, epoch),
        )
        self.shards = self.sequence.shards
        self._partitions = min(MAX_PARTITIONS, len(shard_lengths), global_batch)
        # The first row of a global batch that each partition gives, and the end.
        self._first_rows = -(-np.arange(self._partitions + 1) * global_batch // self._partitions)
        self._block_length = max(1, BLOCK_SHARDS * total // len(shard_lengths))
        # A part meets each of its partitions in one block, or in two where one ends.
        self._block = functools.lru_cache(2 * self._partitions)(self._permuted_block)

    def part(self, step: int, first: int, count: int) -> Part:
        """Return rows ``first`` to ``first + count`` (exclusive) of a global batch."""
        rows = np.arange(first, first + count)
        partitions = rows * self._partitions // self.global_batch
        begins = self._first_rows[partitions]
        positions = step * (self._first_rows[partitions + 1] - begins) + rows - begins
        blocks = (positions + self._shift(partitions)) // self._block_length
        for partition, block in sorted(set(zip(partitions.tolist(), blocks.tolist(), strict=True))):
            here = (partitions == partition) & (blocks == block)
            start, permuted = self._block(partition, block)
            positions[here] = permuted[positions[here] - start]
        return Part(step, first, *self.sequence.samples(self.steps * begins + positions))

    def _permuted_block(self, partition: int, block: int) -> tuple[int, np.ndarray]:
        """Return the first position of a block of a partition, and all its positions in their new order."""
        end = (block + 1) * self._block_length - self._shift(partition)
        length = self.steps * int(self._first_rows[partition + 1] - self._first_rows[partition])
        start, end = max(0, end - self._block_length), min(end, length)
        return start, start + permutation(end - start, "window", *self._key, partition, block)

    def _shift(self, partition: Any) -> Any:
        """Return the number of samples by which the blocks of a partition (or of several) start earlier."""
        return partition * self._block_length // self._partitions


class ShardSequence:
    """The samples of a split, shard after shard in a given order, rotated by ``offset``."""

    def __init__(self, shard_lengths: tuple[int, ...], order: np.ndarray, offset: int = 0) -> None:
        self.shards: list[int] = order.tolist()  # in the order in which they are read
        self._order, self._offset = order, offset
        self._ends = np.asarray(shard_lengths)[order].cumsum()
        self._starts = self._ends - np.asarray(shard_lengths)[order]

    def samples(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards, rows) of these positions of the sequence; all (B,), int64."""
        positions = (positions + self._offset) % self._ends[-1]
        number = np.searchsorted(self._ends, positions, side="right")
        return self._order[number], positions - self._starts[number]


class StreamOrder:
    """An epoch of training of ``samples`` samples, whichever they are; in place of ``Order``."""

    def __init__(self, samples: int, global_batch: int) -> None:
        self.steps, self.global_batch = steps_per_epoch(samples, global_batch), global_batch
        self.shards: list[int] = []

    def part(self, step: int, first: int, count: int) -> Part:
        """Return rows ``first`` to ``first + count`` (exclusive) of a global batch."""
        nowhere = np.zeros(count, np.int64)
        return Part(step, first, nowhere, nowhere)


AnyOrder = Order | StreamOrder


class TrainPlan:
    """The micro-batches of one rank in one epoch, by number.

    In each step every rank reads ``accumulation`` micro-batches. In micro-batch m, rank r of W has the rows
    from (m * W + r) * micro_batch on; the noise of stochastic gates relies on that.

    Raises:
        PlanError: the global batch is no multiple of ranks times micro-batch.
    """

    def __init__(self, order: AnyOrder, micro_batch: int, rank: int, world_size: int) -> None:
        if micro_batch < 1 or order.global_batch % (micro_batch * world_size):
            raise PlanError(
                f"the global batch size {order.global_batch} is no multiple of "
                f"{world_size} ranks x micro-batch {micro_batch}"
            )
        self.accumulation = order.global_batch // (micro_batch * world_size)
        self._micro_batch, self._rank, self._world_size = micro_batch, rank, world_size
        self._order, self.shards = order, order.shards

    def __len__(self) -> int:
        return self._order.steps * self.accumulation

    def part(self, number: int) -> Part:
        """Return the batch of this number."""
        step, micro = divmod(number, self.accumulation)
        first = (micro * self._world_size + self._rank) * self._micro_batch
        return self._order.part(step, first, self._micro_batch)


class EvalPlan:
    """The batches of one rank in one evaluation, by number: over all ranks, every sample once.

    Ranks have contiguous parts and differ by at most one sample; only the last batch of a rank may be
    short. ``limit`` keeps the first so many samples of the split, over all ranks together.
    """

    def __init__(
        self, shard_lengths: tuple[int, ...], *, batch_size: int, rank: int, world_size: int, limit: int | None = None
    ) -> None:
        total = sum(shard_lengths) if limit is None else min(sum(shard_lengths), limit)
        self._begin, self._end = rank * total // world_size, (rank + 1) * total // world_size
        self._batch_size = batch_size
        self._sequence = ShardSequence(shard_lengths, np.arange(len(shard_lengths)))
        self.shards = self._sequence.shards

    def __len__(self) -> int:
        return -(-(self._end - self._begin) // self._batch_size)

    def part(self, number: int) -> Part:
        """Return the batch of this number."""
        first = self._begin + number * self._batch_size
        positions = np.arange(first, min(first + self._batch_size, self._end))
        return Part(number, 0, *self._sequence.samples(positions))


class StreamEvalPlan:
    """Batches of a stream until it ends; in place of ``EvalPlan``."""

    def __init__(self, batch_size: int) -> None:
        self._order = StreamOrder(batch_size, batch_size)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return sys.maxsize

    def part(self, number: int) -> Part:
        """Return the batch of this number."""
        return self._order.part(number, 0, self._batch_size)


Plan = TrainPlan | EvalPlan | StreamEvalPlan
