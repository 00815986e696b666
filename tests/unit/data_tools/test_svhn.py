"""SVHN's MATLAB files are read, the digit 0 under its own number, and damaged ones are named."""

import numpy as np
import pytest
from scipy.io import savemat
from shard_helpers import arrays, multiset

from data_tools import ShardError, make_shards


def original(folder, split: str, count: int, seed: int):
    """One file as it was published; returns pixels (N, 32, 32, 3) and digits."""
    rng = np.random.RandomState(seed)
    pixels = rng.randint(0, 256, (32, 32, 3, count), dtype=np.uint8)
    digits = rng.permutation(count) % 10
    labels = np.where(digits == 0, 10, digits)[:, None].astype(np.uint8)
    savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": labels}, do_compression=True)
    return pixels.transpose(3, 0, 1, 2), digits


def test_svhn_comes_back_pixel_by_pixel_and_once_each(tmp_path):
    expected = {split: original(tmp_path, split, 20, seed) for seed, split in enumerate(("train", "test"))}
    index = make_shards("svhn", tmp_path, tmp_path / "out")
    assert index.class_names == tuple("0123456789")
    assert index.image_shape == (3, 32, 32)
    for split, held in expected.items():
        assert multiset(*arrays(tmp_path / "out", split)) == multiset(*held)


def test_missing_and_damaged_files_are_named(tmp_path):
    original(tmp_path, "train", 20, 0)
    with pytest.raises(ShardError, match=r"no test_32x32\.mat in .*: get http://.*/test_32x32\.mat$"):
        make_shards("svhn", tmp_path, tmp_path / "out")
    original(tmp_path, "test", 20, 1)
    victim = tmp_path / "test_32x32.mat"
    victim.write_bytes(victim.read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"cannot read .*test_32x32\.mat: .*get it again") as caught:
        make_shards("svhn", tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [11]]}, "labels from 1 to 10"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "one label for each image"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": [[1], [2]]}, "32x32 RGB pixels"),
        ({"y": [[1]]}, "cannot read .*'X'"),
    ],
)
def test_a_file_with_something_else_inside_is_refused(tmp_path, content, message):
    original(tmp_path, "test", 20, 1)
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(ShardError, match=message):
        make_shards("svhn", tmp_path, tmp_path / "out")


def test_without_network_the_message_says_what_to_do(tmp_path, offline):
    with pytest.raises(ShardError, match=r"get http://.*train_32x32\.mat.*make svhn FOLDER --out"):
        make_shards("svhn", None, tmp_path / "out")
