"""The order of an epoch: a function of seed, epoch, data and global batch, whoever reads it, however often resumed."""

import itertools
import zlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import ShardError
from dist_prune.data.plan import BLOCK_SHARDS, MAX_PARTITIONS, EvalPlan, Order, PlanError, TrainPlan, steps_per_epoch

Sample = tuple[int, int]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=20).map(tuple)


@st.composite
def epochs(draw):
    """(shard lengths, seed, epoch, global batch) of an epoch with at least one step."""
    lengths = draw(LENGTHS)
    return (lengths, draw(st.integers(0, 5)), draw(st.integers(0, 9)), draw(st.integers(1, min(48, sum(lengths)))))


def samples(part) -> list[Sample]:
    return list(zip(part.shards.tolist(), part.rows.tolist(), strict=True))


def reference(lengths, seed, epoch, global_batch) -> list[list[Sample]]:
    """The global batches of an epoch, from one process without workers."""
    order = Order(lengths, seed, epoch, global_batch)
    return [samples(order.part(step, 0, global_batch)) for step in range(order.steps)]


def read(lengths, seed, epoch, global_batch, world_size, micro_batch, steps) -> list[list[Sample]]:
    """The global batches number ``steps`` as so many ranks read them, each with a plan of its own."""
    found = [[] for _ in steps]
    for rank in range(world_size):
        plan = TrainPlan(Order(lengths, seed, epoch, global_batch), micro_batch, rank, world_size)
        for number in range(steps.start * plan.accumulation, steps.stop * plan.accumulation):
            part = plan.part(number)
            assert part.step == number // plan.accumulation
            found[part.step - steps.start].append((part.first, samples(part)))
    return [[sample for _, part in sorted(batch) for sample in part] for batch in found]


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@settings(max_examples=300, deadline=None)
@given(epochs(), st.data())
def test_any_number_of_ranks_reads_the_same_global_batches_also_after_an_interruption(epoch, data):
    expected = reference(*epoch)
    global_batch, steps = epoch[-1], len(expected)
    found, begin = [], 0
    for end in (data.draw(st.integers(0, steps), "interrupted before step"), steps):
        world_size = data.draw(st.sampled_from([n for n in divisors(global_batch) if n <= 8]), "ranks")
        micro_batch = data.draw(st.sampled_from(divisors(global_batch // world_size)), "micro-batch")
        found += read(*epoch, world_size, micro_batch, range(begin, end))
        begin = end
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(epochs())
def test_an_epoch_reads_no_sample_twice_and_leaves_out_less_than_a_global_batch(epoch):
    lengths, _, _, global_batch = epoch
    batches = reference(*epoch)
    assert len(batches) == sum(lengths) // global_batch
    assert all(len(batch) == global_batch for batch in batches)
    read = Counter(sample for batch in batches for sample in batch)
    assert max(read.values()) == 1
    assert all(0 <= row < lengths[shard] for shard, row in read)


@settings(max_examples=50, deadline=None)
@given(epochs(), st.data())
def test_a_batch_can_be_had_without_those_before_it(epoch, data):
    expected = reference(*epoch)
    step = data.draw(st.integers(0, len(expected) - 1))
    assert samples(Order(*epoch).part(step, 0, epoch[-1])) == expected[step]


def test_the_order_of_today_is_that_of_tomorrow():
    """Whoever changes this breaks the exact resume of runs that were begun before."""
    assert reference((3, 2, 4), 1, 2, 4) == [[(0, 2), (2, 0), (2, 3), (1, 1)], [(0, 1), (2, 1), (2, 2), (1, 0)]]
    assert zlib.crc32(str(reference((30,) * 20, 1, 2, 16)).encode()) == 2438559676


def test_every_sample_of_a_single_shard_is_read_in_some_epoch():
    everything = {(0, row) for row in range(20)}
    left_out = [
        everything - {sample for batch in reference((20,), 1, epoch, 16) for sample in batch} for epoch in range(12)
    ]
    assert all(len(tail) == 4 for tail in left_out)
    assert not set.intersection(*left_out)


def test_order_depends_on_seed_and_on_epoch():
    orders = {str(reference((9, 8, 7, 6), seed, epoch, 5)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_a_global_batch_mixes_many_shards_and_a_rank_reads_few_at_a_time():
    lengths, global_batch, world_size = (100,) * 64, 64, 8
    for batch in reference(lengths, 1, 0, global_batch):
        assert len({shard for shard, _ in batch}) >= MAX_PARTITIONS
    for rank in range(world_size):
        plan = TrainPlan(Order(lengths, 1, 0, global_batch), 8, rank, world_size)
        for start in range(0, len(plan), 10):
            parts = [plan.part(number) for number in range(start, min(start + 10, len(plan)))]
            met = {shard for part in parts for shard in part.shards.tolist()}
            partitions = MAX_PARTITIONS // world_size
            assert len(met) <= partitions * (2 * BLOCK_SHARDS + 1)  # two windows, which begin anywhere in a shard


@pytest.mark.parametrize("global_batch", [254, 256, 257])
def test_a_global_batch_of_any_size_mixes_as_many_shards(global_batch):
    mixed = [len({shard for shard, _ in batch}) for batch in reference((500,) * 64, 1, 0, global_batch)]
    assert 24 <= sum(mixed) / len(mixed) <= 3 * MAX_PARTITIONS


def test_partitions_come_to_new_shards_one_after_another():
    seen, new = set(), []
    for batch in reference((100,) * 64, 1, 0, 64):
        shards = {shard for shard, _ in batch}
        new.append(len(shards - seen))
        seen |= shards
    assert new[0] >= MAX_PARTITIONS
    assert sum(new) == 64
    assert max(new[10:]) <= 3  # together, all partitions would come to 32 new ones within a few steps


def test_ranks_take_turns_within_a_global_batch():
    """The noise of stochastic gates is keyed by these rows (train_step)."""
    plans = [TrainPlan(Order((100,), 1, 0, 24), micro_batch=4, rank=rank, world_size=3) for rank in range(3)]
    assert plans[0].accumulation == 2
    for step, turn, rank in itertools.product(range(4), range(2), range(3)):
        part = plans[rank].part(2 * step + turn)
        assert (part.step, part.first) == (step, (3 * turn + rank) * 4)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 8), st.integers(1, 20), st.none() | st.integers(0, 100))
def test_evaluation_reads_every_sample_once_in_the_order_of_the_index(lengths, world_size, batch_size, limit):
    plans = [
        EvalPlan(lengths, batch_size=batch_size, rank=rank, world_size=world_size, limit=limit)
        for rank in range(world_size)
    ]
    ranks = [[samples(plan.part(number)) for number in range(len(plan))] for plan in plans]
    everything = [(shard, row) for shard, length in enumerate(lengths) for row in range(length)]
    assert [sample for rank in ranks for batch in rank for sample in batch] == everything[:limit]
    for rank in ranks:
        assert all(len(batch) == batch_size for batch in rank[:-1])
    sizes = [sum(map(len, rank)) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(PlanError, match="global batch size 64 exceeds the 50 samples"):
        steps_per_epoch(50, 64)
    with pytest.raises(PlanError, match="global batch size 64 is no multiple of 3 ranks x micro-batch 8"):
        TrainPlan(Order((500,), 1, 0, 64), micro_batch=8, rank=0, world_size=3)
    assert issubclass(PlanError, ValueError)
    assert issubclass(PlanError, ShardError)
