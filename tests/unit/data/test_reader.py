"""Shards are fetched ahead, opened once, found again after an eviction, not asked for in vain, read as verified."""

import hashlib
import io
import threading
import zlib
from collections import Counter
from pathlib import Path

import pytest
from made_shards import make, numbered, read_tar, write_index, write_tar
from PIL import Image

from data_tools import Shard, ShardError, ShardIndex, open_store, read_index, verify_shards
from data_tools.images import ImageError, decode_pixels
from data_tools.index import ShardSplit
from dist_prune.data import reader as readers
from dist_prune.data.reader import FETCHES, Reader


class Shelf:
    """A storage that counts, and that loses a shard as often as it is told to."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self.fetched: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.gone: set[str] = set()

    def fetch(self, shard: Shard) -> Path:
        name = shard.name
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


def join_fetches() -> None:
    """Wait for the fetches in the background."""
    for thread in threading.enumerate():
        if "_fetch_following" in thread.name:
            thread.join(timeout=10)


def test_samples_are_those_of_shard_and_row(shelf):
    reader = Reader(shelf, shelf.index, "train", range(6))
    image, label = reader.sample(4, 1)
    assert (int(decode_pixels(image, 1)[0, 0, 0]), label) == (9, 9)
    assert reader.place(4, 1) == f"{shelf.index.root}/{name(4)}, sample train-00000009"


def test_the_next_two_shards_are_fetched_before_they_are_needed(shelf):
    reader = Reader(shelf, shelf.index, "train", [5, 1, 3, 0, 2, 4])
    reader.sample(1, 0)
    join_fetches()
    assert shelf.fetched == Counter([name(1), name(3), name(0)])


def test_a_shard_is_opened_once_for_all_of_its_samples(shelf):
    reader = Reader(shelf, shelf.index, "train", [0])
    for row in (0, 1, 0):
        reader.sample(0, row)
    assert shelf.fetched == Counter([name(0)])


def test_a_shard_that_is_evicted_before_it_is_opened_is_fetched_again(shelf):
    reader = Reader(shelf, shelf.index, "train", [0])
    shelf.lost[name(0)] = FETCHES - 1
    assert reader.sample(0, 1)[1] == 1
    assert shelf.fetched[name(0)] == FETCHES


def test_a_shard_that_cannot_be_had_is_not_asked_for_again_by_each_of_its_samples(shelf):
    reader = Reader(shelf, shelf.index, "train", [0, 1])
    shelf.gone = {name(0), name(1)}  # that of the background is passed over in silence
    for row in (0, 1):
        with pytest.raises(ShardError, match="is not to be had"):
            reader.sample(0, row)
    join_fetches()
    assert shelf.fetched == Counter([name(0), name(1)])


def test_not_all_shards_ever_met_stay_open(shelf, monkeypatch):
    monkeypatch.setattr(readers, "OPEN_SHARDS", 2)
    monkeypatch.setattr(readers, "BLOCK_SHARDS", 0)
    reader = Reader(shelf, shelf.index, "train", range(6))
    for shard in (0, 1, 0, 2, 0, 1):  # shard 1 is the one used least recently when shard 2 comes
        reader.sample(shard, 0)
    assert shelf.fetched == Counter({name(0): 1, name(1): 2, name(2): 1})


def reads(folder: Path) -> bool:
    """Whether every sample of the index can be read and decoded."""
    index = read_index(folder)
    reader = Reader(open_store(folder), index, "train", [0])
    try:
        for row in range(index.split("train").num_samples):
            image, _ = reader.sample(0, row)
            decode_pixels(image, index.channels)
    except (ShardError, ImageError):
        return False
    return True


IMAGES, LABELS = numbered(3)
CHANGES = {
    "none": lambda members: members,
    "label 01": lambda members: [(members[0][0], b"01"), *members[1:]],
    "label with a line end": lambda members: [(members[0][0], b"0\n"), *members[1:]],
    "no image": lambda members: [members[0], *members[2:]],
    "two images": lambda members: [*members[:2], ("train-00000000.jpg", members[1][1]), *members[2:]],
    "parts apart": lambda members: [*members[1:], members[0]],
    "a part twice": lambda members: [members[0], *members],
    "samples in folders": lambda members: [(f"{name[-5]}.x/{name}", data) for name, data in members],
    "a folder for one part": lambda members: [(f"x/{members[0][0]}", members[0][1]), *members[1:]],
    "a palette without colors": lambda members: [members[0], (members[1][0], no_palette()), *members[2:]],
    "nothing": lambda members: [],
}


def no_palette() -> bytes:
    """A palette image that makes one of its colors transparent, but lists none."""
    stream = io.BytesIO()
    Image.new("P", (4, 4)).save(stream, "PNG")
    data = stream.getvalue()
    begin, end = data.index(b"PLTE") - 4, data.index(b"IDAT") - 4
    transparent = b"tRNS\xff\0"
    return data[:begin] + b"\0\0\0\2" + transparent + zlib.crc32(transparent).to_bytes(4, "big") + data[end:]


@pytest.mark.parametrize("change", CHANGES)
def test_what_verification_calls_whole_can_be_read_and_nothing_else(tmp_path, change):
    index = make(tmp_path, {"train": (IMAGES, LABELS, (3,))})
    path = tmp_path / name(0)
    write_tar(path, CHANGES[change](read_tar(path)))
    data = path.read_bytes()
    shard = Shard(path.name, 3, hashlib.sha256(data).hexdigest(), len(data))
    write_index(index.model_copy(update={"splits": {"train": ShardSplit.of("train", [shard])}}))
    assert (verify_shards(tmp_path) == []) == reads(tmp_path)
    assert reads(tmp_path) == (change in ("none", "samples in folders", "label 01", "label with a line end"))
