"""The loader: equal epochs on all ranks, evaluation of every sample once, reruns and resumes alike."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_tools import ShardError, make_shards, read_index
from data_tools.images import decode_image
from dist_prune.data import Augment, ImageData
from dist_prune.data.loader import _start_worker
from dist_prune.data.plan import PlanError, Range
from dist_prune.data.stream import Source

SEEDED = Augment(crop_padding=1, flip=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "digits"
    make_shards("digits", None, folder, samples_per_shard=500)  # three shards to train on
    return folder


def data(folder: Path, workers: int, augment: Augment = SEEDED, seed: int = 1) -> ImageData:
    return ImageData(read_index(folder), seed, workers, None, augment, False)


def train(images: ImageData, epoch: int = 0, rank: int = 0, world_size: int = 1, **options) -> list:
    options = {"micro_batch": 40, "global_batch": 40 * world_size} | options
    return list(images.train_batches(epoch, rank=rank, world_size=world_size, **options))


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def fingerprints(batches) -> Counter:
    return Counter(
        (image.numpy().tobytes(), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    )


def stored(folder: Path, split: str) -> Counter:
    """Everything a split holds, normalized here and not by the loader."""
    index = read_index(folder)
    ranges = [Range(shard, 0, length) for shard, length in enumerate(index.splits[split].shard_lengths)]
    found: Counter = Counter()
    for sample in Source(index, split).samples(ranges):
        pixels = torch.from_numpy(np.array(decode_image(sample.image, 1)))
        scale, shift = (
            1 / (255 * torch.tensor(index.std)),
            -torch.tensor(index.mean) / torch.tensor(index.std),
        )
        found[((pixels.to(torch.float32) * scale + shift).numpy().tobytes(), sample.label)] += 1
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_all_ranks_get_the_same_number_of_full_batches_from_fewer_shards(folder, workers):
    images = data(folder, workers, Augment())
    batches = [train(images, 0, rank, 4, micro_batch=20, global_batch=160) for rank in range(4)]
    steps = images.steps_per_epoch(160)
    assert steps == 1437 // 160
    assert [len(rank) for rank in batches] == [steps * 2] * 4
    assert {len(labels) for rank in batches for _, labels in rank} == {20}
    read = fingerprints(batch for rank in batches for batch in rank)
    assert sum(read.values()) == steps * 160
    assert not read - stored(folder, "train")  # nothing invented, nothing twice


def test_batches_are_of_the_promised_shape_and_type(folder):
    images, labels = train(data(folder, 0))[0]
    assert images.shape == (40, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 1), (2, 3)])
def test_evaluation_counts_every_sample_exactly_once(folder, world_size, workers):
    images = data(folder, workers)
    batches = [
        batch
        for rank in range(world_size)
        for batch in images.eval_batches("train", batch_size=100, rank=rank, world_size=world_size)
    ]
    assert sum(len(labels) for _, labels in batches) == images.num_samples("train")
    assert fingerprints(batches) == stored(folder, "train")


def test_limit_counts_over_all_ranks_and_may_leave_a_rank_without(folder):
    images = data(folder, 1)
    counts = [
        sum(len(y) for _, y in images.eval_batches("test", batch_size=8, rank=rank, world_size=3, limit=2))
        for rank in range(3)
    ]
    assert sum(counts) == 2
    assert 0 in counts


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rerun_gives_identical_batches(folder, workers):
    assert same(train(data(folder, workers)), train(data(folder, workers)))


def test_epochs_seeds_and_ranks_differ(folder):
    images = data(folder, 0)
    runs = [
        train(images, epoch=0),
        train(images, epoch=1),
        train(data(folder, 0, seed=2)),
        train(images, rank=1, world_size=2, global_batch=80),
    ]
    assert not any(same(runs[i], runs[j]) for i in range(4) for j in range(i))
    assert len({str(labels.tolist()) for images, labels in (run[0] for run in runs)}) == 4


@pytest.mark.parametrize(("workers", "skipped"), [(0, 7), (1, 1), (2, 5), (3, 4), (2, 35), (2, 99)])
def test_skipping_batches_changes_nothing_about_the_others(folder, workers, skipped):
    images = data(folder, workers)
    assert same(train(images, skip_batches=skipped), train(images)[skipped:])


def test_images_keep_their_labels_through_the_shuffle(folder):
    images = data(folder, 0, Augment())
    found = train(images)
    labels = [int(label) for _, batch in found for label in batch]
    assert not fingerprints(found) - stored(folder, "train")
    assert sum(a != b for a, b in pairwise(labels)) > len(labels) / 2


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generators_are_left_alone(folder, workers):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(data(folder, workers))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()


def test_batch_sizes_that_do_not_fit_are_refused_before_the_first_batch(folder):
    images = data(folder, 1)
    with pytest.raises(PlanError, match="2000 exceeds the 1437 samples"):
        images.train_batches(0, micro_batch=2000, global_batch=2000, rank=0, world_size=1)
    with pytest.raises(PlanError, match="2000 exceeds the 1437 samples"):
        images.steps_per_epoch(2000)
    with pytest.raises(ShardError, match="has no split 'val'"):
        images.eval_batches("val", batch_size=1, rank=0, world_size=1)


def test_properties_describe_the_batches(folder):
    images = data(folder, 0)
    assert images.num_classes == 10
    assert images.class_names == tuple("0123456789")
    assert images.input_shape == (1, 8, 8)
    assert images.normalization == {"mean": list(images.index.mean), "std": list(images.index.std)}
    assert images.num_samples("test") == 360


def test_workers_ignore_the_signals_that_a_launcher_sends_to_all(monkeypatch):
    handled = {}
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: handled.update(threads=count))
    _start_worker(0)
    ignored = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), signal.SIG_IGN)
    assert handled == {**ignored, "threads": 1}


SCRIPT = """
import sys
from data_tools import read_index
from dist_prune.data import Augment, ImageData
images = ImageData(read_index(sys.argv[1]), 1, 2, None, Augment(), False)
batches = images.train_batches(0, micro_batch=8, global_batch=8, rank=0, world_size=1)
next(batches)
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "code", "noise"),
    [
        ("del batches", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise RuntimeError('boom')", 1, "RuntimeError: boom"),
    ],
)
def test_leaving_an_epoch_early_neither_hangs_nor_prints(folder, ending, code, noise):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ending=ending), str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.strip().splitlines()[-1:] == ([noise] if noise else [])
    assert time.monotonic() - start < 30
