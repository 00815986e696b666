"""A tree of image files becomes shards as it is, and what is wrong with a tree is named."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image
from shard_helpers import files, members, write_image
from torchvision.datasets import ImageFolder

from data_tools import ShardError, make_shards, verify_shards


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "raw" / "animals"
    for number in range(12):
        write_image(root / "train" / ["cat", "dog"][number % 2] / f"{number}.jpg", number)
    for number in range(4):
        write_image(root / "val" / ["cat", "dog"][number % 2] / f"{number}.PNG", 100 + number)
    return root


def test_image_files_are_copied_byte_for_byte_with_their_class(tmp_path, tree):
    index = make_shards("imagefolder", tree, tmp_path / "out", samples_per_shard=5)
    assert index.class_names == ("cat", "dog")
    assert index.image_shape == (3, 10, 12)
    assert index.splits["train"].shard_lengths == (5, 5, 2)
    for split, folder in (("train", "train"), ("test", "val")):
        originals = [path for path in (tree / folder).rglob("*") if path.is_file()]
        expected = [(path.read_bytes(), int(path.parent.name == "dog")) for path in originals]
        assert sorted(files(tmp_path / "out", split)) == sorted(expected)


def test_images_in_deeper_folders_are_of_the_class_that_torchvision_gives_them(tmp_path):
    names = sorted(["猫", "собака", "qué tal", "v1.2.3", "🐶 dog", "e\u0301", "10", "9"])
    for number, name in enumerate(names * 3):
        for split in ("train", "test"):
            place = tmp_path / "动物 pets" / split / name / ["", "deep", "deep/er v2.0"][number % 3]
            write_image(place / f"{number}.jpg", number + 100 * (split == "test"))
    index = make_shards("imagefolder", tmp_path / "动物 pets", tmp_path / "out")
    assert index.splits["train"].filenames == ("pets-train-000000.tar",)
    for split in ("train", "test"):
        theirs = ImageFolder(str(tmp_path / "动物 pets" / split))
        assert index.class_names == tuple(theirs.classes)
        expected = [(Path(path).read_bytes(), label) for path, label in theirs.samples]
        assert sorted(files(tmp_path / "out", split)) == sorted(expected)
    assert verify_shards(tmp_path / "out") == []


def test_the_extension_follows_the_content(tmp_path, tree):
    (tree / "train" / "cat" / "0.jpg").rename(tree / "train" / "cat" / "0.png")
    make_shards("imagefolder", tree, tmp_path / "out")
    names = members(tmp_path / "out", "train")
    assert sum(name.endswith(".jpg") for name in names) == 12


def test_the_folder_above_a_tree_will_do(tmp_path, tree):
    index = make_shards("imagefolder", tree.parent, tmp_path / "out")
    assert index.splits["train"].filenames == ("animals-train-000000.tar",)


def test_images_of_several_sizes_have_no_common_shape(tmp_path, tree):
    write_image(tree / "train" / "cat" / "tall.jpg", 50, size=(9, 30))
    index = make_shards("imagefolder", tree, tmp_path / "out")
    assert index.image_shape is None
    assert len(index.mean) == len(index.std) == 3


def test_one_color_image_makes_all_of_them_color(tmp_path):
    for number in range(3):
        write_image(tmp_path / "raw" / "train" / "a" / f"{number}.png", number, mode="L")
        write_image(tmp_path / "raw" / "test" / "a" / f"{number}.png", number, mode="L")
    assert make_shards("imagefolder", tmp_path / "raw", tmp_path / "gray").image_shape == (1, 10, 12)
    write_image(tmp_path / "raw" / "test" / "a" / "color.png", 9)
    assert make_shards("imagefolder", tmp_path / "raw", tmp_path / "color").image_shape == (3, 10, 12)


def test_a_tree_without_test_images_is_divided_only_on_request(tmp_path, tree):
    (tree / "val").rename(tmp_path / "aside")
    with pytest.raises(ShardError, match=r"neither test/ nor val/.*--test_fraction"):
        make_shards("imagefolder", tree, tmp_path / "out")
    index = make_shards("imagefolder", tree, tmp_path / "out", test_fraction=0.34)
    assert (index.splits["train"].num_samples, index.splits["test"].num_samples) == (8, 4)
    assert sorted(label for _, label in files(tmp_path / "out", "test")) == [0, 0, 1, 1]
    with pytest.raises(ShardError, match="expected a number between 0 and 1"):
        make_shards("imagefolder", tree, tmp_path / "other", test_fraction=1.5)


def test_class_lists_must_agree(tmp_path, tree):
    write_image(tree / "val" / "emu" / "1.png", 1)
    with pytest.raises(ShardError, match="val has 'emu', train has not"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_two_folders_of_one_split_are_ambiguous(tmp_path, tree):
    (tree / "validation").mkdir()
    with pytest.raises(ShardError, match="holds val and validation: rename all but one"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_a_class_without_images_is_named(tmp_path, tree):
    (tree / "train" / "emu").mkdir()
    (tree / "val" / "emu").mkdir()
    with pytest.raises(ShardError, match=r"no images in .*train/emu"):
        make_shards("imagefolder", tree, tmp_path / "out")


@pytest.mark.parametrize("extension", ["bmp", "avif", "HEIC", "heif", "jp2", "jxl"])
def test_an_image_of_another_format_is_not_left_out_in_silence(tmp_path, tree, extension):
    (tree / "train" / "cat" / f"x.{extension}").write_bytes(b"BM")
    with pytest.raises(ShardError, match=rf"cat/x\.{extension}: only JPEG, PNG and WebP"):
        make_shards("imagefolder", tree, tmp_path / "out")


@pytest.mark.parametrize("extension", ["jpeg", "JPE", "jfif"])
def test_a_jpeg_is_read_by_any_of_its_names(tmp_path, tree, extension):
    (tree / "train" / "cat" / "0.jpg").rename(tree / "train" / "cat" / f"0.{extension}")
    assert make_shards("imagefolder", tree, tmp_path / "out").splits["train"].num_samples == 12


@pytest.mark.parametrize("place", ["train/x.jpg", "val/x.gif"])
def test_an_image_beside_the_folders_of_the_classes_is_not_left_out_in_silence(tmp_path, tree, place):
    write_image(tree / "x.jpg", 0)
    (tree / "x.jpg").rename(tree / place)
    with pytest.raises(ShardError, match=rf"{place} is beside the folders of the classes: move it into"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(tmp_path, tree, monkeypatch):
    write_image(tree / "train" / "cat" / "locked" / "x.jpg", 0)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ShardError, match=r"cannot read .*cat/locked: Permission denied"):
        make_shards("imagefolder", tree, tmp_path / "out")


@pytest.mark.parametrize(("link", "target"), [("self", "."), ("up", ".."), ("sub/again", "../more")])
def test_a_link_that_leads_to_images_twice_is_refused(tmp_path, tree, link, target):
    for folder in ("sub", "more"):
        write_image(tree / "train" / "cat" / folder / "1.jpg", 1)
    (tree / "train" / "cat" / link).symlink_to(target)
    with pytest.raises(ShardError, match=r"train/cat.* once more: its images would come twice"):
        make_shards("imagefolder", tree, tmp_path / "out")


def test_images_behind_a_link_are_images(tmp_path, tree):
    (tree / "train" / "cat").rename(tmp_path / "elsewhere")
    (tree / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert make_shards("imagefolder", tree, tmp_path / "out").splits["train"].num_samples == 12


def test_names_that_are_not_utf8_are_read_in_files_and_refused_in_classes(tmp_path, tree):
    odd = os.fsdecode(b"\xff")
    (tree / "train" / "cat" / "0.jpg").rename(tree / "train" / "cat" / f"{odd}.jpg")
    assert make_shards("imagefolder", tree, tmp_path / "out").splits["train"].num_samples == 12
    for split in ("train", "val"):
        (tree / split / "cat").rename(tree / split / odd)
    with pytest.raises(ShardError, match=r"the name of '\\udcff' in .*train is not UTF-8: rename that folder"):
        make_shards("imagefolder", tree, tmp_path / "other")


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_image_is_named_and_leaves_no_index(tmp_path, tree, damage):
    victim = tree / "train" / "dog" / "3.jpg"
    data = victim.read_bytes()
    victim.write_bytes({"empty": b"", "cut": data[: len(data) * 2 // 3], "text": b"no image"}[damage])
    with pytest.raises(ShardError, match=r"train/dog/3\.jpg: (empty|corrupt) image") as caught:
        make_shards("imagefolder", tree, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "_info.json").exists()


def test_webp_files_come_byte_for_byte(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "toy" / split / "cat").mkdir(parents=True)
        stream = io.BytesIO()
        Image.new("RGB", (8, 6), "teal").save(stream, "WEBP")
        (tmp_path / "toy" / split / "cat" / "x.webp").write_bytes(stream.getvalue())
    make_shards("imagefolder", tmp_path / "toy", tmp_path / "shards")
    assert members(tmp_path / "shards", "train")["train-00000000.webp"] == stream.getvalue()
    assert verify_shards(tmp_path / "shards") == []
