"""Who reads what and in which order: pure arithmetic on shard lengths, without files.

The order of an epoch is a function of (seed, epoch, shard lengths, global batch) alone:

- The *sequence*: all shards in a drawn order, begun at a drawn place and going round, cut to whole global
  batches. So another tail is left out in every epoch.
- The sequence is cut into equal *lanes*, and a global batch takes the next few samples of every lane. So a
  batch mixes many places of the data, while ranks, which take contiguous parts of it, mostly read their
  own lanes' shards.
- Within a lane, *windows* of two mean shard lengths are permuted, each by a key of its own. So any global
  batch can be had without those before it, and reading stays within a few shards at a time. Lanes begin
  new windows one after another, so that they do not all want new shards at once.

Ranks cut up global batches, and workers take turns; neither changes what a global batch holds.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from data_tools import ShardError
from dist_prune.data.draws import below, permutation

MAX_LANES = 16
WINDOW_SHARDS = 2


class PlanError(ShardError, ValueError):
    """Batch sizes that do not fit the data or the number of ranks; one line naming both."""


class Part(NamedTuple):
    """What is read at a time: samples ``rows`` (B,) of ``shards`` (B,), both int64.

    In training they are the rows from ``first`` on of global batch number ``step``.
    """

    step: int
    first: int
    shards: np.ndarray
    rows: np.ndarray


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


class Order:
    """The global batches of one epoch of training."""

    def __init__(self, shard_lengths: tuple[int, ...], seed: int, epoch: int, global_batch: int) -> None:
        total = sum(shard_lengths)
        self.steps = steps_per_epoch(total, global_batch)
        self._key = seed, epoch
        self.sequence = Sequence(
            shard_lengths,
            permutation(len(shard_lengths), "shards", seed, epoch),
            below(total, "turn", seed, epoch),
        )
        self._lanes = max(
            n for n in range(1, min(MAX_LANES, len(shard_lengths)) + 1) if global_batch % n == 0
        )
        self._from_lane = global_batch // self._lanes  # samples of every global batch
        self._lane_length = self.steps * self._from_lane
        self._window_length = max(1, WINDOW_SHARDS * total // len(shard_lengths))
        # A part meets each of its lanes in one window, or in two where one ends.
        self._window = functools.lru_cache(2 * self._lanes)(self._permuted_window)

    def part(self, step: int, first: int, count: int) -> Part:
        """Return rows ``first`` to ``first + count`` (exclusive) of a global batch."""
        lanes, ahead = np.divmod(np.arange(first, first + count), self._from_lane)
        places = step * self._from_lane + ahead
        windows = (places + self._shift(lanes)) // self._window_length
        for lane, window in sorted(set(zip(lanes.tolist(), windows.tolist(), strict=True))):
            here = (lanes == lane) & (windows == window)
            start, permuted = self._window(lane, window)
            places[here] = permuted[places[here] - start]
        return Part(step, first, *self.sequence.samples(lanes * self._lane_length + places))

    def _permuted_window(self, lane: int, window: int) -> tuple[int, np.ndarray]:
        """Return the first place of a window of a lane, and all its places in their new order."""
        end = (window + 1) * self._window_length - self._shift(lane)
        start, end = max(0, end - self._window_length), min(end, self._lane_length)
        return start, start + permutation(end - start, "window", *self._key, lane, window)

    def _shift(self, lane: Any) -> Any:
        """Return by how much the windows of a lane, or of an array of lanes, begin earlier."""
        return lane * self._window_length // self._lanes


class Sequence:
    """The samples of a split, shard after shard in a given order, begun at ``turn`` and going round."""

    def __init__(self, shard_lengths: tuple[int, ...], order: np.ndarray, turn: int = 0) -> None:
        self._order, self._turn = order, turn
        self._ends = np.asarray(shard_lengths)[order].cumsum()
        self._starts = self._ends - np.asarray(shard_lengths)[order]

    @property
    def shards(self) -> list[int]:
        """The shards in the order in which they are read."""
        return self._order.tolist()

    def samples(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards, rows) of these places of the sequence; all (B,), int64."""
        places = (places + self._turn) % self._ends[-1]
        number = np.searchsorted(self._ends, places, side="right")
        return self._order[number], places - self._starts[number]


class TrainPlan:
    """The micro-batches of one rank in one epoch, by number.

    In each step every rank reads ``accumulation`` micro-batches. In turn m, rank r of W has the rows
    from (m * W + r) * micro_batch on; the noise of stochastic gates relies on that.

    Raises:
        PlanError: the global batch exceeds the data or is no multiple of ranks times micro-batch.
    """

    def __init__(
        self,
        shard_lengths: tuple[int, ...],
        *,
        seed: int,
        epoch: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
    ) -> None:
        if micro_batch < 1 or global_batch % (micro_batch * world_size):
            raise PlanError(
                f"the global batch size {global_batch} is no multiple of "
                f"{world_size} ranks x micro-batch {micro_batch}"
            )
        self.accumulation = global_batch // (micro_batch * world_size)
        self._micro_batch, self._rank, self._world_size = micro_batch, rank, world_size
        self._order = Order(shard_lengths, seed, epoch, global_batch)
        self.shards = self._order.sequence.shards

    def __len__(self) -> int:
        return self._order.steps * self.accumulation

    def part(self, number: int) -> Part:
        """Return the batch of this number."""
        step, turn = divmod(number, self.accumulation)
        first = (turn * self._world_size + self._rank) * self._micro_batch
        return self._order.part(step, first, self._micro_batch)


class EvalPlan:
    """The batches of one rank in one evaluation, by number: over all ranks, every sample once.

    Ranks have contiguous parts and differ by at most one sample; only the last batch of a rank may be
    short. ``limit`` keeps the first so many samples of the split, over all ranks together.
    """

    def __init__(
        self,
        shard_lengths: tuple[int, ...],
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        limit: int | None = None,
    ) -> None:
        total = sum(shard_lengths) if limit is None else min(sum(shard_lengths), limit)
        self._begin, self._end = rank * total // world_size, (rank + 1) * total // world_size
        self._batch_size = batch_size
        self._sequence = Sequence(shard_lengths, np.arange(len(shard_lengths)))
        self.shards = self._sequence.shards

    def __len__(self) -> int:
        return -(-(self._end - self._begin) // self._batch_size)

    def part(self, number: int) -> Part:
        """Return the batch of this number."""
        first = self._begin + number * self._batch_size
        places = np.arange(first, min(first + self._batch_size, self._end))
        return Part(number, 0, *self._sequence.samples(places))
