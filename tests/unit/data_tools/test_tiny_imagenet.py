"""Tiny-ImageNet's own layout is read: classes in its order, labels of val from the list."""

import random
import re
import tarfile
from pathlib import Path

import pytest
from shard_helpers import files, real_data, write_image

from data_tools import ShardError, make_shards, verify_shards

WNIDS = ["n03", "n01", "n02"]  # the list is not sorted


@pytest.fixture
def original(tmp_path) -> Path:
    root = tmp_path / "raw" / "tiny-imagenet-200"
    for number in range(9):
        wnid = WNIDS[number % 3]
        write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", number, size=(64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x\t0\t0\t63\t63\n")
    for number in range(6):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", 100 + number, size=(64, 64))
    lines = [f"val_{number}.JPEG\t{WNIDS[number // 2]}\t0\t0\t62\t62\n" for number in range(6)]
    (root / "val" / "val_annotations.txt").write_text("".join(random.Random(0).sample(lines, 6)))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\nn09\tboat\n")
    return root


def test_images_come_with_the_classes_of_its_lists(original, tmp_path):
    for name, folder in (("inside", original), ("above", original.parent)):
        index = make_shards("tiny-imagenet", folder, tmp_path / name)
        assert index.class_names == ("n03", "n01", "n02")
        assert index.class_titles == ("n03", "goldfish, Carassius auratus", "newt")
        assert index.image_shape == (3, 64, 64)
        train = [
            (path.read_bytes(), WNIDS.index(path.parent.parent.name)) for path in original.glob("train/*/images/*.JPEG")
        ]
        test = [((original / f"val/images/val_{n}.JPEG").read_bytes(), n // 2) for n in range(6)]
        assert sorted(files(tmp_path / name, "train")) == sorted(train)
        assert sorted(files(tmp_path / name, "test")) == sorted(test)


def test_without_readable_names_there_are_none(original, tmp_path):
    (original / "words.txt").unlink()
    assert make_shards("tiny-imagenet", original, tmp_path / "out").class_titles == ()


def test_what_is_missing_or_contradicts_is_named(original, tmp_path):
    def refused(message: str, folder: Path | None = original) -> None:
        with pytest.raises(ShardError, match=message) as caught:
            make_shards("tiny-imagenet", folder, tmp_path / "out")
        assert "\n" not in str(caught.value)

    refused(r"get and unpack http://.*tiny-imagenet-200\.zip", None)
    refused(r"no wnids\.txt in", tmp_path / "out")
    annotations = original / "val" / "val_annotations.txt"
    complete = annotations.read_text()
    annotations.write_text("".join(line for line in complete.splitlines(True) if "val_3" not in line))
    refused("no class is given for the image val_3")
    annotations.write_text(complete.replace("n01", "n77"))
    refused("the image val_[23] is of class n77, which train has not")
    annotations.write_text("val_0.JPEG\n")
    refused(r"val_annotations\.txt is damaged")
    annotations.unlink()
    refused(r"cannot read .*val_annotations\.txt")


def test_the_real_images_come_back_byte_for_byte(tmp_path):
    many = re.compile(r"/train/.*_\d{2,}\.JPEG$")  # ten of each class are enough to train with
    with tarfile.open(real_data("tiny-imagenet-20classes.tar.gz")) as tar:
        tar.extractall(tmp_path, [m for m in tar if not many.search(m.name)], filter="data")
    root = tmp_path / "tiny-imagenet-200"
    index = make_shards("tiny-imagenet", root, tmp_path / "out")
    assert (len(index.class_names), index.splits["train"].num_samples) == (20, 200)
    assert index.class_titles[0] == "goldfish, Carassius auratus"
    expected = [
        (path.read_bytes(), index.class_names.index(path.parent.parent.name))
        for path in root.glob("train/*/images/*.JPEG")
    ]
    assert sorted(files(tmp_path / "out", "train")) == sorted(expected)
    assert index.splits["test"].num_samples == 1000
    assert verify_shards(tmp_path / "out") == []
