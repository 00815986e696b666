"""Shards are fetched ahead, opened once, found again after an eviction, and not asked for in vain."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from made_shards import make, numbered

from data_tools import ShardError, ShardIndex
from dist_prune.data import reader as readers
from dist_prune.data.reader import FETCHES, Reader


class Shelf:
    """A storage that counts, and that loses a shard as often as it is told to."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self.fetched: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.gone: set[str] = set()

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        self.fetched[name] += 1
        if name in self.gone:
            raise ShardError(f"{name} is not to be had")
        self.lost[name] -= 1
        return Path(self.index.root) / ("evicted" if self.lost[name] >= 0 else name)


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    images, labels = numbered(12)
    return Shelf(make(tmp_path / "toy", {"train": (images, labels, (2,) * 6)}))


def name(number: int) -> str:
    return f"toy-train-{number:06d}.tar"


def settle() -> None:
    """Wait for the fetches in the background."""
    for thread in threading.enumerate():
        if "_fetch_following" in thread.name:
            thread.join(timeout=10)


def test_samples_are_those_of_shard_and_row(shelf):
    reader = Reader(shelf, shelf.index, "train", range(6))
    sample = reader.sample(4, 1)
    assert (int(sample.image[0, 0, 0]), sample.label) == (9, 9)
    assert sample.place == f"{shelf.index.root}/{name(4)}, sample 1"


def test_the_next_two_shards_are_fetched_before_they_are_needed(shelf):
    reader = Reader(shelf, shelf.index, "train", [5, 1, 3, 0, 2, 4])
    reader.sample(1, 0)
    settle()
    assert shelf.fetched == Counter([name(1), name(3), name(0)])


def test_a_shard_is_opened_once_for_all_of_its_samples(shelf):
    reader = Reader(shelf, shelf.index, "train", [0])
    for row in (0, 1, 0):
        reader.sample(0, row)
    assert shelf.fetched == Counter([name(0)])


def test_a_shard_that_is_evicted_before_it_is_opened_is_fetched_again(shelf):
    reader = Reader(shelf, shelf.index, "train", [0])
    shelf.lost[name(0)] = FETCHES - 1
    assert reader.sample(0, 1).label == 1
    assert shelf.fetched[name(0)] == FETCHES


def test_a_shard_that_cannot_be_had_is_not_asked_for_again_by_each_of_its_samples(shelf):
    reader = Reader(shelf, shelf.index, "train", [0, 1])
    shelf.gone = {name(0), name(1)}  # that of the background is passed over in silence
    for row in (0, 1):
        with pytest.raises(ShardError, match="is not to be had"):
            reader.sample(0, row)
    settle()
    assert shelf.fetched == Counter([name(0), name(1)])


def test_not_all_shards_ever_met_stay_open(shelf, monkeypatch):
    monkeypatch.setattr(readers, "OPEN_SHARDS", 2)
    monkeypatch.setattr(readers, "WINDOW_SHARDS", 0)
    reader = Reader(shelf, shelf.index, "train", range(6))
    for shard in (0, 1, 0, 2, 0, 1):  # shard 1 is the one used least recently when shard 2 comes
        reader.sample(shard, 0)
    assert shelf.fetched == Counter({name(0): 1, name(1): 2, name(2): 1})
