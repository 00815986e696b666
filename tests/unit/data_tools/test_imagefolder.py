"""A tree of image files becomes shards as it is, and what is wrong with a tree is named."""

from pathlib import Path

import pytest
from shard_helpers import files, members, write_image

from data_tools import ShardError, make_shards


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
    assert (index.format, index.image_shape) == ("files", (3, 10, 12))
    assert index.splits["train"].shard_lengths == (5, 5, 2)
    for split, folder in (("train", "train"), ("test", "val")):
        originals = [path for path in (tree / folder).rglob("*") if path.is_file()]
        expected = [(path.read_bytes(), int(path.parent.name == "dog")) for path in originals]
        assert sorted(files(tmp_path / "out", split)) == sorted(expected)


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
    assert sorted(label for _, label in files(tmp_path / "out", "test")) == [0, 0, 1, 1]
    with pytest.raises(ShardError, match="expected a number between 0 and 1"):
        make_shards("imagefolder", tree, tmp_path / "other", test_fraction=1.5)


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
