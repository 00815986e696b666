"""Damaged and missing shards stop the run with one line, with and without worker processes."""

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest
from webdataset import TarWriter

from data_tools import ShardError, make_shards, read_index
from data_tools.index import write_index
from dist_prune.data import Augment, ImageData


@pytest.fixture
def folder(tmp_path) -> Path:
    make_shards("digits", None, tmp_path / "digits")
    return tmp_path / "digits"


def read_everything(folder: Path, workers: int, split: str = "test") -> int:
    data = ImageData(read_index(folder), 1, workers, None, Augment(), False)
    return sum(len(y) for _, y in data.eval_batches(split, batch_size=64, rank=0, world_size=1))


def edit(path: Path, change) -> None:
    """Rewrite a tar: ``change`` takes and returns a list of (name, content)."""
    with tarfile.open(path) as tar:
        content = [(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for name, data in change(content):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def replaced(name: str, data: bytes):
    return lambda content: [(key, data if key == name else old) for key, old in content]


def expect(folder: Path, workers: int, message: str) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        read_everything(folder, workers)
    assert type(caught.value) is ShardError
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


SHARD = "digits-test-000000.tar"
both = pytest.mark.parametrize("workers", [0, 1])


@both
def test_whole_shards_are_read_whole(folder, workers):
    assert read_everything(folder, workers) == 360


@both
def test_a_tar_cut_at_a_member_boundary_is_noticed(folder, workers):
    path = folder / SHARD
    with tarfile.open(path) as tar:
        boundary = next(m.offset for m in tar if m.name == "test-00000100.cls")
    path.write_bytes(path.read_bytes()[:boundary])
    expect(folder, workers, f"{path}: found 100 samples, expected 360")


@both
def test_a_flipped_bit_in_a_header_is_noticed(folder, workers):
    path = folder / SHARD
    with tarfile.open(path) as tar:
        header = next(m.offset for m in tar if m.name == "test-00000100.cls")
    content = bytearray(path.read_bytes())
    content[header + 3] ^= 1
    path.write_bytes(content)
    expect(folder, workers, f"{path}: found 100 samples, expected 360")


def test_a_tar_cut_in_a_header_is_noticed(folder):
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[: 512 * 100 + 200])
    expect(folder, 0, f"{path}")


@both
def test_a_missing_shard_is_named(folder, workers):
    (folder / SHARD).unlink()
    expect(folder, workers, f"missing shard {folder / SHARD}")


@both
def test_a_label_that_is_no_class_is_named_with_its_key(folder, workers):
    edit(folder / SHARD, replaced("test-00000070.cls", b"10"))
    expect(
        folder, workers, f"{folder / SHARD}, sample test-00000070: label '10' is none of the classes 0 to 9"
    )


@both
def test_a_corrupt_image_is_named_with_its_key(folder, workers):
    edit(folder / SHARD, replaced("test-00000080.png", b"\x89PNG\r\n\x1a\nbroken"))
    expect(folder, workers, f"{folder / SHARD}, sample test-00000080: corrupt image")


def test_labels_that_are_no_numbers_and_empty_images_are_named(folder):
    edit(folder / SHARD, replaced("test-00000070.png", b""))
    expect(folder, 0, "sample test-00000070: empty image")
    edit(folder / SHARD, replaced("test-00000003.cls", b"-1"))
    expect(folder, 0, "sample test-00000003: label '-1'")


def test_a_sample_without_label_is_named(folder):
    edit(folder / SHARD, lambda content: [item for item in content if item[0] != "test-00000005.cls"])
    expect(folder, 0, "sample test-00000005 lacks its image or its label")


def test_a_shard_with_more_samples_than_listed_is_noticed(folder):
    edit(folder / SHARD, lambda content: [*content, ("x.cls", b"1"), ("x.png", content[1][1])])
    expect(folder, 0, "found more than 360 samples, expected 360")


def test_a_file_that_is_no_tar_is_named(folder):
    (folder / SHARD).write_bytes(b"no tar at all" * 100)
    expect(folder, 0, f"(cannot read|damaged) shard {folder / SHARD}")


def test_a_pickle_in_a_shard_is_not_read(folder):
    poison = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."  # what WebDataset's own decoder would execute
    edit(folder / SHARD, lambda content: [*content[:2], ("test-00000000.pyd", poison), *content[2:]])
    assert read_everything(folder, 0) == 360


def test_an_image_of_another_size_than_the_index_says_is_named(folder):
    index = read_index(folder)
    write_index(dataclasses.replace(index, image_shape=(1, 8, 9)))
    expect(folder, 0, "sample test-00000000: the image is .8, 8. pixels where the index says .9, 8.")


def test_damage_in_a_shard_stops_training_too(folder):
    path = folder / "digits-train-000002.tar"
    with open(path, "wb") as stream, TarWriter(stream, encoder=False) as tar:
        tar.write({"__key__": "a", "png": b"", "cls": b"0"})
    data = ImageData(read_index(folder), 1, 1, None, Augment(), False)
    with pytest.raises(ShardError, match=rf"{path}"):
        list(data.train_batches(0, micro_batch=32, global_batch=32, rank=0, world_size=1))
