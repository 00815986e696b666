"""CIFAR's original files are read, in every form they come in, and a pickle gets no power."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_helpers import arrays, multiset

from data_tools import ShardError, make_shards

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(number: int, count: int = 6) -> dict:
    rng = np.random.RandomState(number)
    return {
        b"batch_label": b"some batch",
        b"labels": rng.randint(0, 10, count).tolist(),
        b"data": rng.randint(0, 256, (count, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * count,
    }


@pytest.fixture
def original(tmp_path) -> Path:
    folder = tmp_path / "raw" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate(BATCHES):
        # The real files were written by Python 2 with protocol 2; others by later versions.
        (folder / name).write_bytes(pickle.dumps(batch(number), protocol=2 + number % 4))
    names = {b"num_cases_per_batch": 6, b"label_names": [name.encode() for name in NAMES]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol=2))
    return folder


def archive(folder: Path) -> Path:
    path = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname="cifar-10-batches-py")
    return path


def images(*batches: dict, labels=b"labels") -> list:
    """What the batches hold, as (label, bytes of pixels (32, 32, 3))."""
    rows = np.concatenate([batch[b"data"] for batch in batches])
    pixels = np.stack([np.stack([row[:1024], row[1024:2048], row[2048:]], axis=1) for row in rows])
    return multiset(pixels, [label for batch in batches for label in batch[labels]])


def test_cifar10_comes_back_pixel_by_pixel_and_once_each(original, tmp_path):
    index = make_shards("cifar10", original, tmp_path / "out")
    assert index.class_names == tuple(NAMES)
    assert index.image_shape == (3, 32, 32)
    assert multiset(*arrays(tmp_path / "out", "train")) == images(*(batch(n) for n in range(5)))
    assert multiset(*arrays(tmp_path / "out", "test")) == images(batch(5))


def test_cifar100_comes_back_with_its_fine_labels(tmp_path):
    names = [f"class {number}" for number in range(100)]
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    halves = {}
    for number, split in enumerate(("train", "test")):
        fine = np.random.RandomState(number).randint(0, 100, 9).tolist()
        halves[split] = batch(number, 9) | {b"fine_labels": fine, b"coarse_labels": [1] * 9}
        del halves[split][b"labels"]
        (folder / split).write_bytes(pickle.dumps(halves[split], protocol=2))
    meta = {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"x"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    index = make_shards("cifar100", tmp_path, tmp_path / "out")
    assert index.class_names == tuple(names)
    for split, half in halves.items():
        assert multiset(*arrays(tmp_path / "out", split)) == images(half, labels=b"fine_labels")


def test_folder_parent_archive_and_its_folder_give_the_same_shards(original, tmp_path):
    first = make_shards("cifar10", original, tmp_path / "a")
    second = make_shards("cifar10", original.parent, tmp_path / "b")
    packed = archive(original)
    shutil.rmtree(original)
    third = make_shards("cifar10", packed, tmp_path / "c")
    fourth = make_shards("cifar10", packed.parent, tmp_path / "d")
    assert first.splits == second.splits == third.splits == fourth.splits
    assert first.image_shape == (3, 32, 32)


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_asks_for_code_is_refused_and_does_nothing(original, tmp_path):
    trap = tmp_path / "trap"
    hostile = pickle.dumps(batch(3) | {b"extra": Malicious(trap)})
    pickle.loads(hostile)
    trap.rmdir()  # the trap works with an ordinary unpickler
    (original / "data_batch_3").write_bytes(hostile)
    with pytest.raises(ShardError, match=r"data_batch_3 is refused: it asks for (posix|nt)\.mkdir") as caught:
        make_shards("cifar10", original, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "is refused"),
        (b"", "is refused"),
        (pickle.dumps([1, 2]), "expected images and labels"),
        (pickle.dumps(batch(0) | {b"data": np.zeros((6, 100), np.uint8)}), "expected one row of 3072 bytes"),
        (pickle.dumps(batch(0) | {b"labels": [1, 2]}), "expected one row of 3072 bytes"),
        (pickle.dumps(batch(0) | {b"labels": [1, 2, 3, 4, 5, 10]}), "expected labels from 0 to 9"),
    ],
)
def test_a_damaged_batch_is_named(original, tmp_path, content, message):
    (original / "data_batch_2").write_bytes(content)
    with pytest.raises(ShardError, match=rf"data_batch_2 (is )?.*{message}"):
        make_shards("cifar10", original, tmp_path / "out")


def test_the_class_names_are_needed(original, tmp_path):
    (original / "batches.meta").write_bytes(pickle.dumps({b"label_names": 3}))
    with pytest.raises(ShardError, match=r"batches\.meta is damaged: .*; expected the names"):
        make_shards("cifar10", original, tmp_path / "out")


def test_missing_files_are_named(original, tmp_path):
    with pytest.raises(ShardError, match=r"no cifar10 in .*get it from https://"):
        make_shards("cifar10", tmp_path / "out", tmp_path / "out")
    packed = archive(original)
    (original / "data_batch_4").unlink()
    with pytest.raises(ShardError, match="data_batch_4"):
        make_shards("cifar10", original, tmp_path / "out")
    packed.write_bytes(packed.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"cannot read .*cifar-10-python\.tar\.gz"):
        make_shards("cifar10", packed, tmp_path / "out")


def test_without_network_the_message_says_what_to_do(tmp_path, offline):
    with pytest.raises(ShardError, match=r"get https://.*cifar-10-python.*dist-prune shards make cifar10 FOLDER --out"):
        make_shards("cifar10", None, tmp_path / "out")


def test_shards_that_are_there_need_no_network(original, tmp_path, monkeypatch):
    made = make_shards("cifar10", original, tmp_path / "out")
    monkeypatch.setattr("data_tools.sources.arrays.download", None)
    assert make_shards("cifar10", None, tmp_path / "out") == made
