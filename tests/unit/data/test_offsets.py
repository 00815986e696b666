"""The headers of a shard are read once on a machine, whoever opens it and however often."""

from __future__ import annotations

import os

import numpy as np
import pytest
from made_shards import make, members_of, numbered, write_tar

from data_tools import tar
from dist_prune.data import open_data
from dist_prune.data.reader import open_shard

IMAGES, LABELS = numbered(24)


@pytest.fixture
def scans(monkeypatch, tmp_path):
    """The number of tars whose headers were read so far, by this process or forks of it."""
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))
    log, members = tmp_path / "scans", tar.members

    def counted(file):
        with open(log, "a") as lines:
            lines.write("x")
        return members(file)

    monkeypatch.setattr(tar, "members", counted)
    return lambda: len(log.read_text()) if log.exists() else 0


def read(folder, workers: int, epoch: int) -> list[int]:
    data = open_data(str(folder), workers=workers)
    batches = data.train_batches(epoch, micro_batch=4, global_batch=4, rank=0, world_size=1)
    return [label for _, labels in batches for label in labels.tolist()]


@pytest.mark.parametrize("workers", [0, 4])
def test_epochs_and_workers_read_the_headers_of_each_shard_once(workers, scans, tmp_path):
    make(tmp_path / "set", {"train": (IMAGES, LABELS, (6, 6, 6, 6))})
    for epoch in range(3):
        assert sorted(read(tmp_path / "set", workers, epoch)) == sorted(LABELS.tolist())
    assert scans() == 4


def test_a_shard_that_has_changed_is_read_again(scans, tmp_path):
    path = tmp_path / "toy.tar"
    write_tar(path, members_of(IMAGES[:9], LABELS[:9], 0))
    assert open_shard(path, 9).length == open_shard(path, 9).length == 9
    write_tar(path, members_of(IMAGES[:8], LABELS[:8], 0))
    assert open_shard(path, 8).length == 8
    os.utime(path, ns=(1, 1))
    assert open_shard(path, 8).length == 8
    assert scans() == 3


@pytest.mark.parametrize("content", [b"", b"no array", b"objects"])
def test_what_was_kept_and_is_damaged_is_read_again(content, scans, tmp_path):
    path = tmp_path / "toy.tar"
    write_tar(path, members_of(IMAGES[:9], LABELS[:9], 0))
    open_shard(path, 9)
    (kept,) = (tmp_path / "home" / "offsets").glob("*.npy")
    if content == b"objects":
        np.save(kept, np.array([{}, 1], dtype=object))
    else:
        kept.write_bytes(content)
    assert open_shard(path, 9).label(8) == b"8"
    assert scans() == 2


def test_without_a_place_to_keep_them_headers_are_read_each_time(scans, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    path = tmp_path / "toy.tar"
    write_tar(path, members_of(IMAGES[:9], LABELS[:9], 0))
    for _ in range(2):
        assert open_shard(path, 9).image(3)
    assert scans() == 2
