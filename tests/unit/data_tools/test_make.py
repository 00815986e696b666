"""Shards hold what the source holds, appear whole or not at all, and are the same every time."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from data_tools import ShardError, make_shards, read_index
from data_tools.images import decode_image
from data_tools.sources.base import ArraySplit
from data_tools.statistics import ImageStatistics


def members(folder: Path, split: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in read_index(folder).splits[split].filenames:
        with tarfile.open(folder / name) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def write_image(path: Path, number: int, size=(12, 10), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = () if mode == "L" else (3,)
    pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "raw" / "animals"
    for number in range(12):
        write_image(root / "train" / ["cat", "dog"][number % 2] / f"{number}.jpg", number)
    for number in range(4):
        write_image(root / "val" / ["cat", "dog"][number % 2] / f"{number}.PNG", 100 + number)
    return root


def test_digits_come_back_pixel_by_pixel_and_once_each(tmp_path):
    index = make_shards("digits", None, tmp_path)
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 1437, "test": 360}
    assert index.splits["train"].shard_lengths == (360, 360, 360, 357)
    assert index.image_shape == (1, 8, 8)
    found = []
    for split in index.splits:
        content = members(tmp_path, split)
        for name in content:
            if name.endswith(".png"):
                pixels = np.asarray(decode_image(content[name], 1))
                found.append((int(content[name[:-3] + "cls"]), pixels.tobytes()))
    digits = load_digits()
    expected = [
        (int(label), np.rint(image * 255 / 16).astype(np.uint8).tobytes())
        for label, image in zip(digits.target, digits.images, strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_digits_are_split_in_proportion(tmp_path):
    make_shards("digits", None, tmp_path)
    labels = [int(data) for name, data in members(tmp_path, "test").items() if name.endswith(".cls")]
    everything = np.bincount(load_digits().target)
    assert np.abs(np.bincount(labels) - everything * 360 / 1797).max() < 1


def test_the_test_split_does_not_depend_on_the_seed_of_the_shuffle(tmp_path):
    for seed in (0, 1):
        make_shards("digits", None, tmp_path / str(seed), seed=seed)
    first, second = (members(tmp_path / str(seed), "test") for seed in (0, 1))
    assert list(first.values()) != list(second.values())
    assert sorted(first.values()) == sorted(second.values())


def test_the_same_request_gives_the_same_bytes(tmp_path):
    first = make_shards("digits", None, tmp_path / "a", seed=3)
    second = make_shards("digits", None, tmp_path / "b", seed=3)
    assert first.splits == second.splits
    for name in ["_info.json", *first.splits["train"].filenames]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_mean_and_deviation_are_those_of_the_train_pixels(tmp_path):
    index = make_shards("digits", None, tmp_path)
    pixels = np.stack(
        [decode_image(data, 1) for name, data in members(tmp_path, "train").items() if name.endswith("png")]
    )
    assert index.mean == pytest.approx((pixels.mean() / 255,), abs=1e-6)
    assert index.std == pytest.approx((pixels.std() / 255,), abs=1e-6)


def test_image_files_are_copied_byte_for_byte_with_their_class(tmp_path, tree):
    index = make_shards("imagefolder", tree, tmp_path / "out", samples_per_shard=5)
    assert index.class_names == ("cat", "dog")
    assert index.image_shape == (3, 10, 12)
    assert index.splits["train"].shard_lengths == (5, 5, 2)
    for split, folder, extension in (("train", "train", "jpg"), ("test", "val", "png")):
        content = members(tmp_path / "out", split)
        found = {
            (data, content[name[:-3] + "cls"]) for name, data in content.items() if name.endswith(extension)
        }
        files = [path for path in (tree / folder).rglob("*") if path.is_file()]
        expected = {(path.read_bytes(), b"0" if path.parent.name == "cat" else b"1") for path in files}
        assert found == expected
        assert len(content) == 2 * len(files)


def test_the_folder_above_a_tree_will_do(tmp_path, tree):
    index = make_shards("imagefolder", tree.parent, tmp_path / "out")
    assert index.splits["train"].filenames == ("animals-train-000000.tar",)


def test_images_of_several_sizes_have_no_common_shape(tmp_path, tree):
    write_image(tree / "train" / "cat" / "tall.jpg", 50, size=(9, 30))
    index = make_shards("imagefolder", tree, tmp_path / "out")
    assert index.image_shape is None
    assert len(index.mean) == len(index.std) == 3


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    for number in range(3):
        write_image(tmp_path / "raw" / "train" / "a" / f"{number}.png", number, mode="L")
        write_image(tmp_path / "raw" / "test" / "a" / f"{number}.png", number, mode="L")
    assert make_shards("imagefolder", tmp_path / "raw", tmp_path / "gray").image_shape == (1, 10, 12)
    write_image(tmp_path / "raw" / "test" / "a" / "colour.png", 9)
    assert make_shards("imagefolder", tmp_path / "raw", tmp_path / "colour").image_shape == (3, 10, 12)


def test_a_tree_without_test_images_is_divided_only_on_request(tmp_path, tree):
    (tree / "val").rename(tmp_path / "aside")
    with pytest.raises(ShardError, match=r"neither test/ nor val/.*--test_fraction"):
        make_shards("imagefolder", tree, tmp_path / "out")
    index = make_shards("imagefolder", tree, tmp_path / "out", test_fraction=0.34)
    assert (index.splits["train"].num_samples, index.splits["test"].num_samples) == (8, 4)
    labels = [int(data) for name, data in members(tmp_path / "out", "test").items() if name.endswith(".cls")]
    assert sorted(labels) == [0, 0, 1, 1]
    with pytest.raises(ShardError, match="expected a number between 0 and 1"):
        make_shards("imagefolder", tree, tmp_path / "other", test_fraction=1.5)


def test_test_fraction_is_refused_where_there_are_test_images(tmp_path, tree):
    for source, folder in (("imagefolder", tree), ("digits", None), ("cifar10", tmp_path)):
        with pytest.raises(ShardError, match="leave out --test_fraction"):
            make_shards(source, folder, tmp_path / "out", test_fraction=0.1)


def test_class_lists_must_agree(tmp_path, tree):
    write_image(tree / "val" / "emu" / "1.png", 1)
    with pytest.raises(ShardError, match="val has 'emu', train has not"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_two_test_folders_are_ambiguous(tmp_path, tree):
    (tree / "test").mkdir()
    with pytest.raises(ShardError, match="holds test and val"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_a_class_without_images_is_named(tmp_path, tree):
    (tree / "train" / "emu").mkdir()
    (tree / "val" / "emu").mkdir()
    with pytest.raises(ShardError, match=r"no images in .*train/emu"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_an_image_of_another_format_is_not_left_out_in_silence(tmp_path, tree):
    (tree / "train" / "cat" / "x.bmp").write_bytes(b"BM")
    with pytest.raises(ShardError, match=r"cat/x\.bmp: only JPEG and PNG"):
        make_shards("imagefolder", tree, tmp_path / "out")


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_image_is_named_and_leaves_no_index(tmp_path, tree, damage):
    victim = tree / "train" / "dog" / "3.jpg"
    data = victim.read_bytes()
    victim.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "text": b"no image"}[damage])
    with pytest.raises(ShardError, match=r"train/dog/3\.jpg: (empty|corrupt) image") as caught:
        make_shards("imagefolder", tree, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "_info.json").exists()


def test_a_crash_leaves_no_file_under_a_final_name(tmp_path, monkeypatch):
    calls = []

    def crash(self, number, read=ArraySplit.read):
        calls.append(number)
        if len(calls) == 500:  # in the middle of the second shard
            raise RuntimeError("crash")
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(ArraySplit, "read", crash)
        with pytest.raises(RuntimeError, match="crash"):
            make_shards("digits", None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digits-train-000000.tar"]
    make_shards("digits", None, tmp_path).check_files()


def test_shards_that_are_there_are_left_alone(tmp_path, tree, monkeypatch):
    made = make_shards("imagefolder", tree, tmp_path / "out")
    digits = make_shards("digits", None, tmp_path / "digits")
    monkeypatch.setattr(ImageStatistics, "add", None)  # nothing may be written again
    assert make_shards("imagefolder", tree, tmp_path / "out") == made
    assert make_shards("digits", None, tmp_path / "digits") == digits


def test_other_shards_are_not_overwritten(tmp_path, tree):
    make_shards("imagefolder", tree, tmp_path)
    before = (tmp_path / "_info.json").read_bytes()
    write_image(tree / "train" / "cat" / "new.jpg", 77)
    for request in ({"folder": tree}, {"folder": tree, "seed": 1}, {"folder": tree, "samples_per_shard": 7}):
        with pytest.raises(ShardError, match="already holds other shards"):
            make_shards("imagefolder", out=tmp_path, **request)
    with pytest.raises(ShardError, match="already holds other shards"):
        make_shards("digits", None, tmp_path)
    assert (tmp_path / "_info.json").read_bytes() == before


def test_incomplete_shards_that_are_there_are_reported(tmp_path):
    index = make_shards("digits", None, tmp_path)
    (tmp_path / index.splits["test"].filenames[0]).unlink()
    with pytest.raises(ShardError, match="missing shard"):
        make_shards("digits", None, tmp_path)


def test_wrong_requests_are_one_line(tmp_path):
    with pytest.raises(
        ShardError, match=r"unknown source 'cifer10' \(did you mean 'cifar10'\?\); known: digits,"
    ):
        make_shards("cifer10", None, tmp_path)
    with pytest.raises(ShardError, match="imagefolder needs a folder"):
        make_shards("imagefolder", None, tmp_path)
    with pytest.raises(ShardError, match="takes no folder"):
        make_shards("digits", tmp_path, tmp_path)
    with pytest.raises(ShardError, match="start at 1"):
        make_shards("digits", None, tmp_path, samples_per_shard=0)
    with pytest.raises(ShardError, match="no train/ in"):
        make_shards("imagefolder", tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot make the folder"):
        make_shards("digits", None, tmp_path / "file" / "below")
