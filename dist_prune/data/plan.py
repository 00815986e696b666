"""Who reads what: pure arithmetic, without files, from shard lengths to the ranges of one worker.

Training reads a *sequence*: the shards of a split in an order drawn from (seed, epoch), begun at a
place drawn likewise and going round, cut to whole global batches. So another tail is left out in every
epoch, no sample is read twice in one, and sequence and cut do not depend on ranks and workers.
Evaluation reads every sample once, in the order of the index.

Ranks own equal, contiguous parts of the sequence; the workers of a rank own contiguous parts of it,
whole batches each. Shards may be cut anywhere, so fewer shards than ranks are fine.
"""

from typing import NamedTuple

import numpy as np

from data_tools import ShardError


class PlanError(ShardError, ValueError):
    """Batch sizes that do not fit the data or the number of ranks; one line naming both."""


class Range(NamedTuple):
    """Samples ``start`` to ``stop`` (exclusive) of shard number ``shard``."""

    shard: int
    start: int
    stop: int


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Return how many whole global batches there are.

    Raises:
        PlanError: not even one.
    """
    if global_batch < 1:
        raise PlanError(f"the global batch size is {global_batch}: it must be at least 1")
    if global_batch > num_samples:
        raise PlanError(f"the global batch size {global_batch} exceeds the {num_samples} samples there are")
    return num_samples // global_batch


def train_ranges(
    shard_lengths: tuple[int, ...],
    *,
    seed: int,
    epoch: int,
    world_size: int,
    rank: int,
    num_workers: int,
    worker: int,
    micro_batch: int,
    global_batch: int,
) -> list[Range]:
    """Return what one worker reads in one epoch of training, in order.

    Every rank gets ``steps * global_batch / (world_size * micro_batch)`` full micro-batches;
    worker w has those of its rank whose number is w modulo the number of workers, by count.

    Raises:
        PlanError: the global batch exceeds the data or is no multiple of ranks times micro-batch.
    """
    total = sum(shard_lengths)
    batches = batches_per_rank(total, world_size, micro_batch, global_batch)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(shard_lengths)).tolist()
    turn = int(rng.integers(total))
    first, last = share(batches, num_workers, worker)
    begin = turn + (rank * batches + first) * micro_batch
    length = (last - first) * micro_batch
    return _cut([*order, *order], shard_lengths, begin, begin + length)


def batches_per_rank(num_samples: int, world_size: int, micro_batch: int, global_batch: int) -> int:
    """Return the number of micro-batches of every rank in one epoch of training.

    Raises:
        PlanError: as ``train_ranges``.
    """
    if micro_batch < 1 or global_batch % (micro_batch * world_size):
        raise PlanError(
            f"the global batch size {global_batch} is no multiple of "
            f"{world_size} ranks x micro-batch {micro_batch}"
        )
    return steps_per_epoch(num_samples, global_batch) * global_batch // (world_size * micro_batch)


def eval_ranges(
    shard_lengths: tuple[int, ...],
    *,
    world_size: int,
    rank: int,
    num_workers: int,
    worker: int,
    batch_size: int,
    limit: int | None = None,
) -> list[Range]:
    """Return what one worker reads in one evaluation: over all ranks and workers, every sample once.

    Ranks differ by at most one sample; only the last batch of a rank may be short. ``limit`` keeps
    the first so many samples of the split, over all ranks together.
    """
    total = sum(shard_lengths)
    if limit is not None:
        total = min(total, limit)
    begin, end = rank * total // world_size, (rank + 1) * total // world_size
    batches = -(-(end - begin) // batch_size)
    first, last = share(batches, num_workers, worker)
    return _cut(
        list(range(len(shard_lengths))),
        shard_lengths,
        begin + first * batch_size,
        min(begin + last * batch_size, end),
    )


def share(items: int, takers: int, taker: int) -> tuple[int, int]:
    """Return the (first, last) part of one taker when items are dealt out contiguously.

    The first takers get the odd ones, so that taking turns, one item each, runs out evenly.
    """
    each, odd = divmod(items, takers)
    first = taker * each + min(taker, odd)
    return first, first + each + (taker < odd)


def _cut(order: list[int], shard_lengths: tuple[int, ...], begin: int, end: int) -> list[Range]:
    """Return positions ``begin`` to ``end`` of the samples of the shards in this order."""
    ranges = []
    offset = 0
    for shard in order:
        length = shard_lengths[shard]
        start, stop = max(begin - offset, 0), min(end - offset, length)
        if start < stop:
            ranges.append(Range(shard, start, stop))
        offset += length
    return ranges
