"""Without a test split, a share of the training images is held out: the same ones, for every run and rank."""

from __future__ import annotations

import pytest
from made_shards import make, numbered, numbers

from data_tools import ShardError
from dist_prune.data import open_data

IMAGES, LABELS = numbered(50)


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "set", {"train": (IMAGES, LABELS, (20, 20, 1, 9))})
    return str(tmp_path / "set")


def held_out(folder: str, world_size: int = 1, **options) -> list[int]:
    data = open_data(folder, eval_share=0.2, **options)
    ranks = [data.eval_batches("test", batch_size=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [number for rank in ranks for images, *_ in rank for number in numbers(images)]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_and_evaluation_share_no_image_and_leave_none_out(folder, workers):
    tested = held_out(folder, world_size=3, workers=workers)
    assert len(set(tested)) == len(tested) == 10
    data = open_data(folder, workers=workers, eval_share=0.2)
    assert (data.num_samples("train"), data.num_samples("test")) == (40, 10)
    for epoch in range(2):
        batches = data.train_batches(epoch, micro_batch=4, global_batch=8, rank=0, world_size=1)
        trained = [number for images, *_ in batches for number in numbers(images)]
        assert sorted([*trained, *tested]) == list(range(50))


def test_what_is_held_out_is_the_same_with_every_seed_and_number_of_ranks(folder):
    assert held_out(folder, seed=1) == held_out(folder, seed=2) == held_out(folder, world_size=4)


def test_samples_of_a_step_are_rows_of_the_shards(folder):
    data = open_data(folder, workers=0, eval_share=0.2)
    rows = data.samples_of_step(0, 1, 8)
    starts = dict(zip(data.index.split("train").filenames, (0, 20, 40, 41), strict=True))
    first, *_ = next(data.train_batches(0, micro_batch=8, global_batch=8, rank=0, world_size=1, skip_steps=1))
    assert sorted(starts[name] + row for name, found in rows.items() for row in found) == sorted(numbers(first))


def test_another_share_is_other_data(folder):
    identities = [open_data(folder, eval_share=share).identity() for share in (0.0, 0.2, 0.3)]
    assert identities[0] != identities[1] != identities[2]


def test_a_share_of_nothing_or_beside_a_test_split_is_refused(folder, tmp_path):
    with pytest.raises(ShardError, match=r"eval_share=0\.001 of 50 samples is 0: both parts need some"):
        open_data(folder, eval_share=0.001).num_samples("test")
    make(tmp_path / "both", {"train": (IMAGES, LABELS, (50,)), "test": (IMAGES, LABELS, (50,))})
    with pytest.raises(ShardError, match="has a test split: eval_share must be 0"):
        open_data(str(tmp_path / "both"), eval_share=0.1)
