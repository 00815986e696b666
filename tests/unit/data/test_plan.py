"""The plan: equal ranks, nothing read twice, nothing left out but a tail that changes."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_tools import ShardError
from dist_prune.data.plan import PlanError, batches_per_rank, eval_ranges, share, train_ranges

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(tuple)
RANKS = st.integers(1, 8)
WORKERS = st.integers(0, 4).map(lambda workers: max(1, workers))  # no workers: the rank is its own


def samples(ranges) -> list[tuple[int, int]]:
    return [(shard, place) for shard, start, stop in ranges for place in range(start, stop)]


def train(lengths, world_size, workers, micro_batch, global_batch, seed=1, epoch=0):
    """Return the samples of every worker of every rank."""
    return [
        [
            samples(
                train_ranges(
                    lengths,
                    seed=seed,
                    epoch=epoch,
                    world_size=world_size,
                    rank=rank,
                    num_workers=workers,
                    worker=worker,
                    micro_batch=micro_batch,
                    global_batch=global_batch,
                )
            )
            for worker in range(workers)
        ]
        for rank in range(world_size)
    ]


@settings(max_examples=150, deadline=None)
@given(LENGTHS, RANKS, WORKERS, st.integers(1, 5), st.integers(1, 3), st.integers(0, 5), st.integers(0, 9))
def test_training_gives_every_rank_the_same_full_batches_and_no_sample_twice(
    lengths, world_size, workers, micro_batch, accumulation, seed, epoch
):
    global_batch = world_size * micro_batch * accumulation
    assume(global_batch <= sum(lengths))
    plan = train(lengths, world_size, workers, micro_batch, global_batch, seed, epoch)
    steps = sum(lengths) // global_batch
    for rank in plan:
        assert all(len(part) % micro_batch == 0 for part in rank)
        assert sum(map(len, rank)) == steps * accumulation * micro_batch
        # Taking turns from worker 0 on runs out evenly: no worker waits for one that has ended.
        counts = [len(part) // micro_batch for part in rank]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
    read = Counter(sample for rank in plan for part in rank for sample in part)
    assert max(read.values()) == 1
    assert sum(read.values()) == steps * global_batch
    assert all(place < lengths[shard] for shard, place in read)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, RANKS, WORKERS, st.integers(1, 20), st.none() | st.integers(0, 100))
def test_evaluation_reads_every_sample_once(lengths, world_size, workers, batch_size, limit):
    plan = [
        [
            samples(
                eval_ranges(
                    lengths,
                    world_size=world_size,
                    rank=rank,
                    num_workers=workers,
                    worker=worker,
                    batch_size=batch_size,
                    limit=limit,
                )
            )
            for worker in range(workers)
        ]
        for rank in range(world_size)
    ]
    everything = [(shard, place) for shard, length in enumerate(lengths) for place in range(length)]
    assert [sample for rank in plan for part in rank for sample in part] == everything[:limit]
    for rank in plan:
        assert sum(len(part) % batch_size > 0 for part in rank) <= 1
    sizes = [sum(map(len, rank)) for rank in plan]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 50), st.integers(1, 9))
def test_shares_are_contiguous_and_the_first_ones_larger(items, takers):
    parts = [share(items, takers, taker) for taker in range(takers)]
    assert parts[0][0] == 0
    assert parts[-1][1] == items
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    sizes = [last - first for first, last in parts]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_an_epoch_has_the_same_samples_in_the_same_order_for_any_ranks_and_workers():
    lengths = (50, 30, 40)
    flat = [
        [sample for rank in train(lengths, ranks, workers, 4 // ranks, 8) for part in rank for sample in part]
        for ranks, workers in ((1, 1), (2, 1), (4, 3))
    ]
    assert flat[0] == flat[1] == flat[2]


def test_every_sample_of_a_single_shard_is_read_in_some_epoch():
    left_out = [
        {(0, place) for place in range(20)} - set(train((20,), 1, 1, 16, 16, epoch=epoch)[0][0])
        for epoch in range(12)
    ]
    assert all(len(tail) == 4 for tail in left_out)
    assert not set.intersection(*left_out)


def test_order_depends_on_seed_and_on_epoch():
    orders = {str(train((9, 8, 7, 6), 1, 1, 5, 5, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(PlanError, match="global batch size 64 exceeds the 50 samples"):
        batches_per_rank(50, 1, 64, 64)
    with pytest.raises(PlanError, match="global batch size 64 is no multiple of 3 ranks x micro-batch 8"):
        batches_per_rank(500, 3, 8, 64)
    assert issubclass(PlanError, ValueError)
    assert issubclass(PlanError, ShardError)
