"""Stream order: every sample as webdataset reads it, on any number of ranks and workers, without an index."""

from __future__ import annotations

import itertools
import os
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from made_shards import encoded, make, numbered, numbers

from data_tools import ShardError
from dist_prune.config import CacheConfig, DataConfig
from dist_prune.data import open_data
from dist_prune.data.plan import PlanError

COUNT, SHARDS = 60, 6
CACHE = f"dist_prune-{os.getuid()}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    images, labels = numbered(COUNT)
    for split in ("train", "val"):
        pattern = str(folder / f"{split}-%03d.tar")
        with webdataset.ShardWriter(pattern, maxcount=COUNT // SHARDS, verbose=0) as writer:
            for number in range(COUNT):
                writer.write({"__key__": f"{number:04d}", "png": encoded(images[number]), "cls": int(labels[number])})
    return folder


def stream(location, *, workers=0, samples=COUNT, shuffle=20, eval_data=None, bad_data="error", **data):
    chosen = DataConfig(
        location=str(location),
        order="stream",
        classes=data.pop("classes", 10),
        samples=samples,
        shuffle=shuffle,
        **data,
    )
    cache = CacheConfig(retries=0)
    return open_data(chosen, workers=workers, eval_data=eval_data, bad_data=bad_data, cache=cache)


def evaluated(data, ranks=1, split="test", **options) -> list[tuple[int, int]]:
    """Number and label of every image, over all ranks."""
    (mean,), (std,) = data.normalization["mean"], data.normalization["std"]
    return sorted(
        pair
        for rank in range(ranks)
        for images, labels, _ in data.eval_batches(split, batch_size=7, rank=rank, world_size=ranks, **options)
        for pair in zip(numbers(images * std + mean), labels.tolist(), strict=True)
    )


def trained(data, *, rank=0, ranks=1, epoch=0, batch=6, skip=0) -> list[list[int]]:
    (mean,), (std,) = data.normalization["mean"], data.normalization["std"]
    batches = data.train_batches(
        epoch, micro_batch=batch // ranks, global_batch=batch, rank=rank, world_size=ranks, skip_steps=skip
    )
    return [numbers(images * std + mean) for images, *_ in batches]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 2), (4, 0)])
def test_evaluation_reads_every_sample_once(folder, ranks, workers):
    data = stream(folder, workers=workers)
    assert evaluated(data, ranks) == [(number, number % 10) for number in range(COUNT)]
    assert data.num_samples("test") is None
    assert len(evaluated(data, ranks, "train", limit=24)) == 24


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 1)])
def test_an_epoch_of_as_many_samples_as_there_are_reads_each_about_once(folder, ranks, workers):
    data = stream(folder, workers=workers, shuffle=5)
    steps = [trained(data, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {len(of) for of in steps} == {10}
    seen = Counter(itertools.chain.from_iterable(itertools.chain.from_iterable(steps)))
    # A buffer of 5 in each process holds back as many, in whose place others come again.
    assert len(seen) >= COUNT - 5 * ranks * max(workers, 1)
    assert max(seen.values()) <= 2


def test_more_readers_than_shards_get_their_full_number_of_steps(folder):
    data = stream(folder / "train-{000..001}.tar", eval_data=str(folder / "val-000.tar"), samples=24)
    for rank in range(4):
        steps = trained(data, rank=rank, ranks=4, batch=8)
        assert [len(step) for step in steps] == [2, 2, 2]
        assert set(itertools.chain.from_iterable(steps)) <= set(range(20))
    assert len(evaluated(data, 4)) == 10


def test_the_same_key_reads_the_same_and_another_epoch_or_a_resume_draws_anew(folder):
    first = trained(stream(folder, workers=2))
    assert trained(stream(folder, workers=2)) == first
    assert trained(stream(folder, workers=2), epoch=1) != first
    rest = trained(stream(folder, workers=2), skip=7)
    assert len(rest) == 3
    assert rest != first[7:]
    # Batches mix shards.
    assert len({number // 10 for number in first[0]}) > 1


def test_an_index_of_ours_says_classes_and_length(tmp_path):
    images, labels = numbered(COUNT)
    splits = {"train": (images, labels, (20, 20, 20)), "test": (images[:8], labels[:8], (8,))}
    make(tmp_path / "toy", splits)
    data = stream(tmp_path / "toy", samples=None, classes=None)
    assert (data.num_samples("train"), data.steps_per_epoch(6)) == (COUNT, 10)
    assert data.class_names == tuple("abcdefghij")
    assert evaluated(data) == [(number, number) for number in range(8)]


@pytest.mark.parametrize("form", ["memory://bucket/stream/{}", "pipe:cat {}"])
def test_remote_shards_leave_nothing_behind(folder, form, monkeypatch):
    fsspec.filesystem("memory").put(str(folder), "/bucket/stream", recursive=True)
    place = form.format("{}" if "memory" in form else folder / "{}")
    # Sockets of the workers lie there, too, and may not have long names.
    with tempfile.TemporaryDirectory() as temporary:
        monkeypatch.setattr("tempfile.tempdir", temporary)
        data = stream(place.format("train-{000..005}.tar"), eval_data=place.format("val-{000..005}.tar"), workers=1)
        assert evaluated(data) == [(number, number % 10) for number in range(COUNT)]
        batches = data.train_batches(0, micro_batch=6, global_batch=6, rank=0, world_size=1)
        assert len(next(batches)[1]) == 6
        batches.close()
        left = [path for path in Path(temporary).rglob("*") if path.suffix == ".tar" and path.parent.name != CACHE]
        assert left == []


def test_the_first_shard_of_a_split_that_is_not_evaluated_may_be_empty(folder):
    (folder / "val-000.tar").rename(folder / "test-000.tar")
    tarfile.open(folder / "val-000.tar", "w").close()
    data = stream(folder / "train-{000..005}.tar", eval_data=str(folder))
    assert evaluated(data) == [(number, number % 10) for number in range(COUNT // SHARDS)]


def test_damaged_shards_and_samples_end_the_run_or_are_counted_and_left_out(folder):
    whole = (folder / "val-001.tar").read_bytes()
    (folder / "val-001.tar").write_bytes(whole[:3000])
    (folder / "val-002.tar").write_bytes(b"\x1f\x8b" + whole)
    with webdataset.TarWriter(str(folder / "val-003.tar")) as writer:
        image = encoded(np.zeros((4, 4, 1), np.uint8))
        writer.write({"__key__": "a", "png": image})
        writer.write({"__key__": "b", "png": image, "cls": b"99"})
        writer.write({"__key__": "c", "png": b"no image", "cls": b"1"})
        writer.write({"__key__": "d", "txt": b"neither"})
    with pytest.raises(ShardError, match=r"damaged shard .*val-001\.tar"):
        evaluated(stream(folder))
    data = stream(folder, bad_data="skip")
    found = evaluated(data)
    # 3000 bytes hold one sample and a half; the half lacks its label or its image.
    assert [number for number, _ in found if number // 10 not in (1, 2, 3)] == [*range(10), *range(40, 60)]
    assert len(found) <= 32
    assert data.skipped.take() in (5, 6)


def test_shards_without_samples_end_an_epoch_with_one_line(folder, tmp_path):
    data = stream(folder)
    for path in folder.glob("train-*.tar"):
        with webdataset.TarWriter(str(path)) as writer:
            writer.write({"__key__": "a", "txt": b"nothing"})
    with pytest.raises(ShardError, match=r"no samples in .*set: expected images"):
        trained(data)


def test_empty_shards_come_first_without_harm(folder):
    for split in ("train", "val"):
        webdataset.TarWriter(str(folder / f"{split}-000.tar")).close()
    data = stream(folder)
    assert [number for number, _ in evaluated(data)] == list(range(10, COUNT))
    assert set(itertools.chain.from_iterable(trained(data))) <= set(range(10, COUNT))
    for path in folder.glob("val-*.tar"):
        webdataset.TarWriter(str(path)).close()
    with pytest.raises(ShardError, match=r"no labels in .*set: expected members"):
        stream(folder)


def test_what_nobody_has_said_is_asked_for(folder):
    with pytest.raises(ShardError, match=r"has no index that says which classes there are: set data\.classes"):
        stream(folder, classes=None)
    with pytest.raises(ShardError, match=r"has no index that counts its images: set data\.samples"):
        stream(folder, samples=None)
    with pytest.raises(PlanError, match="exceeds the 60 samples"):
        stream(folder).steps_per_epoch(64)
    with pytest.raises(ShardError, match="has no split 'test'"):
        stream(folder / "train-000.tar").num_samples("test")
