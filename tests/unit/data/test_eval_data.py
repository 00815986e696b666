"""Images to evaluate on that lie elsewhere: read with the classes, colors and normalization of those to train on."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from made_shards import encoded, make, numbered

from data_tools import ShardError
from data_tools.open_shards import Labelling, write_index
from dist_prune.config import DataConfig
from dist_prune.data import open_data


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))


def shard(path: Path, labels: list[str], channels: int = 3, member: str = "cls", side: int = 4) -> str:
    """Write a tar of images whose pixels are all their number; return its path."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            pixels = np.full((side, side, channels), number, np.uint8)
            for extension, content in (("png", encoded(pixels)), (member, label.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return str(path)


def labels_of(data, split: str = "test") -> list[int]:
    batches = data.eval_batches(split, batch_size=100, rank=0, world_size=1)
    return torch.cat([labels for _, labels, _ in batches]).tolist()


def test_a_class_that_the_smaller_split_lacks_shifts_no_other(tmp_path):
    train = shard(tmp_path / "a" / "x.tar", ["cat", "dog", "eel"] * 4)
    held = shard(tmp_path / "b" / "y.tar", ["eel", "cat"])
    data = open_data(train, eval_data=held, workers=0)
    assert data.class_names == ("cat", "dog", "eel")
    assert labels_of(data) == [2, 0]
    assert data.num_samples("test") == 2
    numbers = shard(tmp_path / "c" / "x.tar", list("0123" * 3)), shard(tmp_path / "d" / "y.tar", list("021"))
    assert labels_of(open_data(numbers[0], eval_data=numbers[1], workers=0)) == [0, 2, 1]


def test_they_replace_the_test_split_and_are_normalized_and_colored_as_the_training_images(tmp_path):
    images, labels = numbered(40)
    rgb = np.repeat(images, 3, -1)
    make(tmp_path / "set", {"train": (rgb, labels, (20, 20)), "test": (rgb[:8], labels[:8], (8,))})
    held = shard(tmp_path / "held" / "val.tar", list("abc"), channels=1)
    data = open_data(str(tmp_path / "set"), eval_data=held, workers=0)
    ((images, *_),) = data.eval_batches("test", batch_size=9, rank=0, world_size=1)
    assert images.shape == (3, 3, 4, 4)
    # ``made_shards`` normalizes by mean 0 and deviation 1.
    assert (images[:, :, 0, 0] * 255).round().int().tolist() == [[n] * 3 for n in range(3)]
    assert data.identity() != open_data(str(tmp_path / "set"), workers=0).identity()
    assert data.identity()["shard_lengths"] == {"train": [20, 20], "test": [3]}


@pytest.mark.parametrize(
    ("labels", "told"), [(["cat", "cow"], "has class 'cow', unlike "), (["0", "1"], "has class '0', unlike ")]
)
def test_other_classes_are_refused_by_name(tmp_path, labels, told):
    train = shard(tmp_path / "a" / "x.tar", ["cat", "dog"] * 4)
    with pytest.raises(ShardError, match=told):
        open_data(train, eval_data=shard(tmp_path / "b" / "y.tar", labels))


def test_what_cannot_be_evaluated_alike_is_refused(tmp_path):
    train = shard(tmp_path / "a" / "x.tar", ["cat", "dog"] * 4, channels=1)
    shard(tmp_path / "b" / "one-train.tar", ["cat"])
    shard(tmp_path / "b" / "one-other.tar", ["cat"])
    for name, side in (("y", 4), ("z", 5)):
        shard(tmp_path / "c" / f"{name}.tar", ["cat"], channels=1, side=side)
    with pytest.raises(ShardError, match=r"differ in size or have colors, those of .* do not"):
        open_data(train, eval_data=str(tmp_path / "c"), image_size=4)
    larger = shard(tmp_path / "d" / "y.tar", ["cat"], channels=1, side=6)
    with pytest.raises(
        ShardError, match=r"/d are 6 x 6, those of .*/a 4 x 4 pixels: choose an image_size or eval_size"
    ):
        open_data(train, eval_data=larger)
    assert open_data(train, eval_data=larger, eval_size=4).input_shape == (1, 4, 4)
    listed = tmp_path / "b" / "_info.json"
    splits = {name: {"filenames": [f"one-{name}.tar"]} for name in ("train", "other")}
    listed.write_text(json.dumps({"splits": splits}))
    with pytest.raises(ShardError, match="has the splits train, other: name the tars of one of them"):
        open_data(train, eval_data=str(tmp_path / "b"))


def test_the_place_and_the_meaning_of_labels_can_be_said(tmp_path):
    (tmp_path / "names").write_text("ape\nbee\ncat\n")
    labels = [json.dumps({"label": 0, "kind": kind}) for kind in ("cat", "bee")]
    path = shard(tmp_path / "a" / "train.tar", labels, member="json")
    shard(tmp_path / "a" / "test.tar", labels[:1], member="json")
    folder = str(tmp_path / "a")
    chosen = DataConfig(location=folder, label_field="kind", classes=str(tmp_path / "names"))
    data = open_data(chosen, workers=0)
    assert data.class_names == ("ape", "bee", "cat")
    assert (labels_of(data, "train"), labels_of(data)) == ([2, 1], [2])
    numbered = open_data(DataConfig(location=folder, classes=5), workers=0)
    assert numbered.class_names == tuple("01234")
    assert labels_of(numbered, "train") == [0, 0]
    with pytest.raises(ShardError, match=r"a field \(kind\) is of json members, not of \.txt"):
        open_data(DataConfig(location=path, label="txt", label_field="kind"))
    with pytest.raises(ShardError, match="cannot read nowhere: No such file"):
        open_data(DataConfig(location=path, classes="nowhere"))
    with pytest.raises(ShardError, match="/dev/zero is larger than a list of classes may be"):
        open_data(DataConfig(location=path, classes="/dev/zero"))
    for order in ("exact", "stream"):
        with pytest.raises(ShardError, match="digits has an index that says where labels are"):
            open_data(DataConfig(location="digits", classes=10, order=order))
    # What is said of the training images is not said of others, which have an index.
    write_index(folder, Labelling(field="kind"), out=str(tmp_path / "a" / "_info.json"))
    shard(tmp_path / "e" / "train.tar", labels, member="json")
    chosen = DataConfig(location=str(tmp_path / "e"), label_field="kind")
    assert labels_of(open_data(chosen, eval_data=folder, workers=0)) == [1]


def test_lists_of_classes_that_name_none_or_begin_with_a_mark_of_their_encoding(tmp_path):
    path = shard(tmp_path / "a" / "train.tar", ["cat", "dog"])
    (tmp_path / "names").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert open_data(DataConfig(location=path, classes=str(tmp_path / "names"))).class_names == ("cat", "dog")
    (tmp_path / "names").write_text("\n")
    with pytest.raises(ShardError, match="names names no classes"):
        open_data(DataConfig(location=path, classes=str(tmp_path / "names")))
