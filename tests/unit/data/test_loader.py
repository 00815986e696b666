"""Real shards, loaders and workers: the order of the plan, equal pixels for all, nothing lost by a resume."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_shards import make, numbered, numbers

from data_tools import ShardError, read_index
from data_tools.store import open_store
from dist_prune.config import AugmentConfig
from dist_prune.data import ImageData, loader
from dist_prune.data.augment import cutmix
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.plan import Order, PlanError

LENGTHS, TEST_LENGTHS = (70, 30, 50, 51), (33, 8)
TRAIN, TEST = sum(LENGTHS), sum(TEST_LENGTHS)
SEEDED = AugmentConfig(crop_padding=1, flip=True, cutout=2, policy="trivialaugment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "toy"
    images, labels = numbered(TRAIN, height=6, width=5)
    splits = {"train": (images, labels, LENGTHS), "test": (images[:TEST], labels[:TEST], TEST_LENGTHS)}
    make(folder, splits)
    return folder


def data(folder: Path, workers: int = 0, augment: AugmentConfig | None = None, seed: int = 1) -> ImageData:
    return ImageData(read_index(folder), open_store(folder), seed, workers, None, augment or AugmentConfig())


def train(images: ImageData, epoch: int = 0, rank: int = 0, world_size: int = 1, **options) -> list:
    options = {"micro_batch": 40 // world_size, "global_batch": 40} | options
    return [batch[:2] for batch in images.train_batches(epoch, rank=rank, world_size=world_size, **options)]


def global_batches(images: ImageData, epoch: int, world_size: int, micro_batch: int, global_batch: int, **options):
    """What all ranks read together: (images, labels) of each step, in the order of the plan.

    ``images``: the data as each rank opens them, or all of them.
    """
    sizes = {"micro_batch": micro_batch, "global_batch": global_batch}
    opened = images if isinstance(images, list) else [images] * world_size
    ranks = [train(opened[rank], epoch, rank, world_size, **sizes, **options) for rank in range(world_size)]
    turns = [rank[number] for number in range(len(ranks[0])) for rank in ranks]  # equally many on all ranks
    assert {len(rank) for rank in ranks} == {len(ranks[0])}
    per_step = global_batch // micro_batch
    steps = [turns[at : at + per_step] for at in range(0, len(turns), per_step)]
    return [tuple(torch.cat(parts) for parts in zip(*step, strict=True)) for step in steps]


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def planned(seed: int, epoch: int, global_batch: int) -> list[list[int]]:
    """The numbers of the images of each global batch."""
    order, starts = Order(LENGTHS, seed, epoch, global_batch), np.cumsum([0, *LENGTHS])
    parts = [order.part(step, 0, global_batch) for step in range(order.steps)]
    return [(starts[part.shards] + part.rows).tolist() for part in parts]


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_ranks_and_workers_read_the_plan_also_after_an_interruption(folder, draw):
    seed, epoch = draw.draw(st.integers(0, 3), "seed"), draw.draw(st.integers(0, 3), "epoch")
    global_batch = draw.draw(st.sampled_from([8, 24, 40]), "global batch")
    expected = planned(seed, epoch, global_batch)
    found, begin = [], 0
    for end in (draw.draw(st.integers(0, len(expected)), "interrupted before step"), len(expected)):
        world_size = draw.draw(st.sampled_from([1, 2, 4, 8]), "ranks")
        micro_batch = draw.draw(st.sampled_from([global_batch // 8, global_batch // world_size]), "micro-batch")
        workers = draw.draw(st.integers(0, 4), "workers")
        forking = draw.draw(st.sets(st.integers(0, world_size - 1), max_size=2), "ranks with workers")
        ranks = [data(folder, workers if rank in forking else 0, seed=seed) for rank in range(world_size)]
        batches = global_batches(ranks, epoch, world_size, micro_batch, global_batch, skip_steps=begin)
        found += [numbers(batch) for batch, _ in batches[: end - begin]]
        begin = end
    assert found == expected


def test_batches_are_of_the_promised_shape_and_type(folder):
    images, labels = train(data(folder))[0]
    assert images.shape == (40, 1, 6, 5)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 1), (2, 3)])
def test_an_images_pixels_are_the_same_for_any_number_of_ranks_and_workers(folder, world_size, workers):
    expected = train(data(folder, 0, SEEDED), epoch=2)
    images = data(folder, workers, SEEDED)
    assert same(global_batches(images, 2, world_size, 10, 40), expected)
    assert same(global_batches(images, 2, world_size, 5, 40, skip_steps=3), expected[3:])


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 1), (2, 3)])
def test_evaluation_gives_every_sample_exactly_once_over_all_ranks(folder, world_size, workers):
    images = data(folder, workers, SEEDED)
    found = [
        (number, label)
        for rank in range(world_size)
        for batch, labels, _ in images.eval_batches("test", batch_size=10, rank=rank, world_size=world_size)
        for number, label in zip(numbers(batch), labels.tolist(), strict=True)
    ]
    assert found == [(number, number % 10) for number in range(TEST)]


def test_limit_counts_over_all_ranks_and_may_leave_a_rank_without(folder):
    images = data(folder, 1)
    counts = [
        sum(len(y) for _, y, _ in images.eval_batches("test", batch_size=8, rank=rank, world_size=3, limit=2))
        for rank in range(3)
    ]
    assert sum(counts) == 2
    assert 0 in counts


def test_epochs_seeds_and_ranks_differ(folder):
    images = data(folder)
    runs = [
        train(images, epoch=0),
        train(images, epoch=1),
        train(data(folder, seed=2)),
        train(images, rank=1, world_size=2, global_batch=80, micro_batch=40),
    ]
    assert not any(same(runs[i], runs[j]) for i in range(4) for j in range(i))


def test_images_keep_their_labels(folder):
    for batch, labels in train(data(folder)):
        assert [number % 10 for number in numbers(batch)] == labels.tolist()


def test_the_first_of_several_views_is_what_one_view_is_and_the_others_are_drawn_anew(folder):
    images = data(folder, augment=SEEDED)
    for (single, labels), (both, same_labels) in zip(train(images), train(images, views=2), strict=True):
        first, second = both.chunk(2)
        assert torch.equal(labels, same_labels)
        assert torch.equal(first, single)
        assert first.shape == second.shape
        assert not torch.equal(first, second)


def test_views_without_augmentation_are_equal_and_mixed_ones_share_their_target(folder):
    for mixed in (0.0, 1.0):
        for both, labels in train(data(folder, augment=AugmentConfig(mixup=mixed)), views=2):
            first, second = both.chunk(2)
            assert torch.equal(first, second)
            assert len(first) == len(labels)


def test_mixed_batches_bring_probabilities(folder):
    _, labels = train(data(folder, 1, AugmentConfig(mixup=0.5)))[0]
    assert (labels.shape, labels.dtype) == ((40, 10), torch.float32)


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(folder, workers):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(data(folder, workers, SEEDED))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


def test_batch_sizes_that_do_not_fit_are_refused_before_the_first_batch(folder):
    images = data(folder, 1)
    with pytest.raises(PlanError, match="2000 exceeds the 201 samples"):
        images.train_batches(0, micro_batch=2000, global_batch=2000, rank=0, world_size=1)
    with pytest.raises(PlanError, match="2000 exceeds the 201 samples"):
        images.steps_per_epoch(2000)
    with pytest.raises(ShardError, match="has no split 'val'"):
        images.eval_batches("val", batch_size=1, rank=0, world_size=1)


def test_properties_describe_the_batches(folder):
    images = data(folder)
    assert images.class_names == tuple("abcdefghij")
    assert images.input_shape == (1, 6, 5)
    assert images.normalization == {"mean": [0.0], "std": [1.0]}
    assert images.num_samples("test") == TEST
    assert images.steps_per_epoch(40) == 5


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("mixed", ["mixup", "cutmix", None])
def test_batches_are_bit_for_bit_the_stored_pixels_normalized_and_mixed(folder, workers, mixed):
    plain = data(folder, workers, AugmentConfig(**{mixed: 0.5}) if mixed else None)
    images = dataclasses.replace(plain, index=plain.index.model_copy(update={"mean": (0.3,), "std": (0.7,)}))
    stored, labels = numbered(TRAIN, height=6, width=5)
    scale, shift = torch.tensor(1 / (255 * 0.7)), torch.tensor(-0.3 / 0.7)
    for step, (rows, (found, targets)) in enumerate(zip(planned(1, 0, 40), train(images), strict=True)):
        expected = torch.from_numpy(stored[rows]).float() * scale + shift
        soft = torch.eye(10)[labels[rows]]
        drawn = BatchRng(1, 0, step, 0, 40)
        if mixed == "mixup":
            share = drawn.beta_of_batch("mixup", 0.5)
            expected, soft = (values.lerp(values.roll(-1, 0), 1 - share) for values in (expected, soft))
        if mixed == "cutmix":
            center = np.array(drawn.of_batch("mix", 3)[1:])
            expected, soft = cutmix(expected, soft, drawn.beta_of_batch("cutmix", 0.5), center)
        assert torch.equal(found, expected.permute(0, 3, 1, 2))
        assert torch.equal(targets, soft if mixed else torch.from_numpy(labels[rows]))


def test_workers_pass_on_bytes(folder, monkeypatch):
    passed = []
    plain = loader.BatchTransform.__call__
    monkeypatch.setattr(
        loader.BatchTransform,
        "__call__",
        lambda self, pixels, *rest: passed.append(pixels) or plain(self, pixels, *rest),
    )
    train(data(folder, 1))
    assert {(tuple(pixels.shape), pixels.dtype) for pixels in passed} == {((40, 6, 5, 1), torch.uint8)}


def test_every_batch_says_the_numbers_of_its_samples_on_any_rank_and_without_those_that_cannot_be_read(folder):
    images = data(folder)
    for rank in range(2):
        for batch in images.train_batches(0, micro_batch=20, global_batch=40, rank=rank, world_size=2):
            assert batch.samples.tolist() == numbers(batch.images)
    held = ImageData(read_index(folder), open_store(folder), 1, 2, None, AugmentConfig(), decoded_bytes=10**6)
    for batch in held.eval_batches("test", batch_size=7, rank=1, world_size=2):
        assert batch.samples.tolist() == numbers(batch.images)
