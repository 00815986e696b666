"""Decoded images are kept on the machine: no batch changes by a bit, and whatever happens to the files is survived."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from made_shards import encoded, make, numbered, read_tar, write_tar

from data_tools import ShardError
from dist_prune.config import AugmentConfig, CacheConfig
from dist_prune.data import decoded, open_data
from dist_prune.data.reader import Reader

LENGTHS, TEST_LENGTHS = (20, 9, 30, 5), (17, 8)
IMAGES, LABELS = numbered(sum(LENGTHS), height=6, width=5)
AUGMENT = AugmentConfig(crop_padding=1, flip=True, cutout=2)
NONE = CacheConfig(decoded_gigabytes=0)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))
    return tmp_path / "home" / "decoded"


@pytest.fixture
def folder(tmp_path) -> Path:
    tested = sum(TEST_LENGTHS)
    splits = {"train": (IMAGES, LABELS, LENGTHS), "test": (IMAGES[:tested], LABELS[:tested], TEST_LENGTHS)}
    make(tmp_path / "toy", splits)
    return tmp_path / "toy"


def damage(folder: Path) -> None:
    """Break an image, and a label in another shard, of the training images."""
    for number, name, data in ((0, "train-00000003.png", b"\x89PNG"), (2, "train-00000040.cls", b"77")):
        path = folder / f"toy-train-{number:06d}.tar"
        write_tar(path, [(key, data if key == name else old) for key, old in read_tar(path)])


def train(data, epoch: int = 0, world_size: int = 1, **options) -> list:
    sizes = {"micro_batch": 8 // world_size, "global_batch": 8}
    return [
        batch
        for rank in range(world_size)
        for batch in data.train_batches(epoch, rank=rank, world_size=world_size, **sizes, **options)
    ]


def evaluate(data, world_size: int = 1, **options) -> list:
    return [
        batch
        for rank in range(world_size)
        for batch in data.eval_batches("test", batch_size=7, rank=rank, world_size=world_size, **options)
    ]


def same(first: list, second: list) -> bool:
    return len(first) == len(second) > 0 and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b, _), (c, d, _) in zip(first, second, strict=True)
    )


def kept(home: Path) -> list[Path]:
    return sorted(home.glob("*.pixels"))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 1)])
@pytest.mark.parametrize("case", ["plain", "damaged", "share"])
def test_no_batch_changes_by_a_bit_and_bad_samples_are_skipped_and_counted_alike(
    folder, home, world_size, workers, case
):
    options = {"workers": workers, "augment": AUGMENT, "bad_data": "skip"}
    location = str(folder)
    if case == "damaged":
        damage(folder)
    if case == "share":
        location, options["eval_share"] = str(folder / "toy-train-{000000..000003}.tar"), 0.3
        make(folder, {"train": (IMAGES, LABELS, LENGTHS)})
    plain, cached = (open_data(location, cache=cache, **options) for cache in (NONE, None))
    for epoch, options in enumerate([{}, {"views": 2, "skip_steps": 3}][: 1 if workers else 2]):
        assert same(train(cached, epoch, world_size, **options), train(plain, epoch, world_size, **options))
        assert cached.skipped.take() == plain.skipped.take()
        assert same(evaluate(cached, world_size), evaluate(plain, world_size))
    assert len(kept(home)) == (1 if case == "share" else 2)


def test_a_later_run_reads_no_shard(folder, home, monkeypatch):
    expected = train(open_data(str(folder)))
    monkeypatch.setattr(Reader, "sample", None)
    assert same(train(open_data(str(folder))), expected)


def test_a_bad_sample_ends_the_run_with_the_line_of_its_shard(folder, home):
    damage(folder)
    for _ in range(2):  # the second time with what the first one kept
        with pytest.raises(ShardError, match=r"sample train-00000003: corrupt image|label '77' is none of the classes"):
            train(dataclasses.replace(open_data(str(folder), bad_data="skip"), bad_data="error"))
    assert len(kept(home)) == 1


def test_processes_that_start_at_once_make_one_file(folder, home, monkeypatch, capfd):
    monkeypatch.setattr(decoded, "LONG", 0)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train, args=(open_data(str(folder), workers=0),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(kept(home)) == 1
    assert capfd.readouterr().err.count("decoded the 64 images of train") == 1


@pytest.mark.parametrize("place", [0, 60, "label", "end", "empty"])
def test_a_damaged_file_is_made_anew(folder, home, place):
    expected = train(open_data(str(folder)))
    (path,) = kept(home)
    whole = path.read_bytes()
    if place in ("end", "empty"):
        os.truncate(path, len(whole) - 1 if place == "end" else 0)
    else:
        at = len(whole) - 8 if place == "label" else place
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert same(train(open_data(str(folder))), expected)
    assert path.read_bytes() == whole


def test_what_a_killed_maker_left_is_removed(folder, home):
    home.mkdir(parents=True)
    for name in ("0" * 32, "f" * 32):
        (home / f"{name}.partial").write_bytes(b"half")
    (home / "mine.partial").write_bytes(b"mine")
    train(open_data(str(folder)))
    assert [path.name for path in home.glob("*.partial")] == ["mine.partial"]


def no_locks(home: Path, monkeypatch) -> None:
    def acquire(self, *_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)


def full_disk(home: Path, monkeypatch) -> None:
    def allocate(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", allocate)


def no_folder(home: Path, monkeypatch) -> None:
    home.write_text("a file in its place")


@pytest.mark.parametrize("trouble", [no_locks, full_disk, no_folder])
def test_without_a_place_images_are_decoded_anew_and_rank_0_says_so_once(folder, home, monkeypatch, capfd, trouble):
    expected = train(open_data(str(folder), cache=NONE), world_size=2)
    trouble(home, monkeypatch)
    data = open_data(str(folder), bad_data="skip")
    for _ in range(2):
        assert same(train(data, world_size=2), expected)
    assert data.skipped.take() == 0
    assert capfd.readouterr().err.count("train images are decoded anew in every epoch: ") == 1
    assert not kept(home) if home.is_dir() else True


def test_shards_that_change_are_decoded_again(folder, home):
    before = train(open_data(str(folder)))
    path = folder / "toy-train-000000.tar"
    members = read_tar(path)
    size = path.stat().st_size
    write_tar(path, [*members[2:], *members[:2]])  # as many bytes, in another order
    assert path.stat().st_size == size
    after = train(open_data(str(folder)))
    assert not same(before, after)
    assert same(after, train(open_data(str(folder), cache=NONE)))


def test_of_a_shard_that_cannot_be_read_nothing_is_kept(folder, home, capfd):
    path = folder / "toy-train-000001.tar"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    data, plain = (open_data(str(folder), bad_data="skip", cache=cache) for cache in (None, NONE))
    assert same(train(data), train(plain))
    assert data.skipped.take() == plain.skipped.take() > 0
    assert not kept(home)
    assert "decoded anew" not in capfd.readouterr().err


def test_shards_at_a_url_are_decoded_too(folder, home, tmp_path):
    fsspec.filesystem("memory").put(str(folder), "/bucket/decoded", recursive=True)
    caches = (CacheConfig(folder=str(tmp_path / "c"), decoded_gigabytes=gigabytes) for gigabytes in (0, 1))
    plain, cached = (open_data("memory://bucket/decoded", cache=cache) for cache in caches)
    assert same(train(cached), train(plain))
    assert len(kept(home)) == 1


def test_jpeg_images_are_what_they_are_without_a_cache(tmp_path, home):
    folder = tmp_path / "jpeg"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 7, 3), dtype=np.uint8)
    index = make(folder, {"train": (pixels, LABELS[:20], (20,))})
    path = folder / index.split("train").filenames[0]
    members = read_tar(path)
    labels = [member for member in members if member[0].endswith(".cls")]
    photos = [(f"{key[:-3]}jpg", encoded(image, "JPEG")) for (key, _), image in zip(labels, pixels, strict=True)]
    write_tar(path, [member for pair in zip(photos, labels, strict=True) for member in pair])
    plain, cached = (open_data(str(folder), cache=cache, bad_data="skip") for cache in (NONE, None))
    assert same(train(cached), train(plain))
    assert len(kept(home)) == 1


@pytest.mark.parametrize(
    "options", [{"image_size": 4}, {"augment": AugmentConfig(random_resized_crop=True)}, {"cache": NONE}]
)
def test_images_that_are_scaled_or_cut_are_read_from_their_shards(folder, home, options):
    assert train(open_data(str(folder), **options))
    assert evaluate(open_data(str(folder), eval_crop=0.8))
    assert not home.exists()


def test_an_evaluation_of_a_few_samples_decodes_no_more(folder, home):
    data = open_data(str(folder))
    evaluate(data, limit=3)
    assert not home.exists()
    evaluate(data)
    assert len(kept(home)) == 1


def bytes_of(samples: int) -> int:
    return decoded.HEADER_BYTES + samples * (6 * 5 + 8)


def test_files_keep_within_their_bound_and_those_least_recently_used_go_first(folder, home, tmp_path):
    room = bytes_of(64) + bytes_of(25) + 100
    limit = CacheConfig(decoded_gigabytes=room / 1e9)
    data = open_data(str(folder), cache=limit)
    train(data)
    evaluate(data)
    first = set(kept(home))
    assert len(first) == 2
    os.utime(min(first), (1, 1))  # used long ago
    make(tmp_path / "other", {"train": (IMAGES[:25], LABELS[:25], (25,))})
    train(open_data(str(tmp_path / "other"), cache=limit))
    left = set(kept(home))
    assert sum(path.stat().st_size for path in left) <= room
    assert min(first) not in left
    assert len(left - first) == 1


def test_a_split_that_does_not_fit_beside_another_one_of_the_run_is_not_kept(folder, home):
    data = open_data(str(folder), cache=CacheConfig(decoded_gigabytes=(bytes_of(64) + 100) / 1e9))
    expected = evaluate(open_data(str(folder), cache=NONE))
    train(data)
    before = kept(home)
    assert same(evaluate(data), expected)
    assert kept(home) == before
    assert len(before) == 1
