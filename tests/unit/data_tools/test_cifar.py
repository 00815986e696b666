"""CIFAR-10's original files are read, in every form they come in, and a pickle gets no power."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_tools import ShardError, make_shards
from data_tools.images import decode_image
from data_tools.sources import SOURCES

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


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
    return folder


def archive(folder: Path) -> Path:
    path = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname="cifar-10-batches-py")
    return path


def test_rows_become_images_with_planes_in_place(original):
    raw = SOURCES["cifar10"].read(original, None)
    assert raw.class_names[:2] == ("airplane", "automobile")
    split = raw.splits["train"]
    assert len(split.labels) == 30
    for number in (0, 7, 29):
        source = batch(number // 6)
        data, extension = split.read(number)
        pixels = np.asarray(decode_image(data, 3))
        assert extension == "png"
        assert np.array_equal(pixels.transpose(2, 0, 1).ravel(), source[b"data"][number % 6])
        assert split.labels[number] == source[b"labels"][number % 6]


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
        (pickle.dumps([1, 2]), "is refused"),
        (pickle.dumps(batch(0) | {b"data": np.zeros((6, 100), np.uint8)}), "expected one row of 3072 bytes"),
        (pickle.dumps(batch(0) | {b"labels": [1, 2]}), "expected one row of 3072 bytes"),
        (pickle.dumps(batch(0) | {b"labels": [1, 2, 3, 4, 5, 10]}), "expected labels from 0 to 9"),
    ],
)
def test_a_damaged_batch_is_named(original, tmp_path, content, message):
    (original / "data_batch_2").write_bytes(content)
    with pytest.raises(ShardError, match=rf"data_batch_2 is .*{message}|data_batch_2 {message}"):
        make_shards("cifar10", original, tmp_path / "out")


def test_missing_files_are_named(original, tmp_path):
    with pytest.raises(ShardError, match="no CIFAR-10 in"):
        make_shards("cifar10", tmp_path / "out", tmp_path / "out")
    packed = archive(original)
    (original / "data_batch_4").unlink()
    with pytest.raises(ShardError, match="data_batch_4"):
        make_shards("cifar10", original, tmp_path / "out")
    packed.write_bytes(packed.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"cannot read .*cifar-10-python\.tar\.gz"):
        make_shards("cifar10", packed, tmp_path / "out")


def test_without_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path))
    with pytest.raises(
        ShardError, match=r"get https://.*dist-prune shards make cifar10 PATH/cifar-10-python"
    ):
        make_shards("cifar10", None, tmp_path / "out")


def test_shards_that_are_there_need_no_network(original, tmp_path, monkeypatch):
    made = make_shards("cifar10", original, tmp_path / "out")
    monkeypatch.setattr("data_tools.sources.cifar10.download", None)
    assert make_shards("cifar10", None, tmp_path / "out") == made
