"""Shards of every source are read by webdataset, timm and datasets as they are: samples, labels, pixels."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from scipy.io import savemat
from shard_helpers import encoded, multiset, write_image
from timm.data.readers import create_reader

from data_tools import make_shards, read_index
from dist_prune.data import open_data

TRAIN, TEST = 24, 7


def write_cifar(folder: Path, batches: dict[str, int], key: bytes, names_file: str, names_key: bytes) -> Path:
    folder.mkdir()
    for seed, (name, count) in enumerate(batches.items()):
        rows = np.random.RandomState(seed).randint(0, 256, (count, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": rows, key: [number % 3 for number in range(count)]}))
    (folder / names_file).write_bytes(pickle.dumps({names_key: [b"a", b"b", b"c"]}))
    return folder


def cifar10(root: Path) -> Path:
    batches = {**{f"data_batch_{number}": 5 for number in range(1, 6)}, "test_batch": TEST}
    return write_cifar(root / "cifar-10-batches-py", batches, b"labels", "batches.meta", b"label_names")


def cifar100(root: Path) -> Path:
    batches = {"train": TRAIN, "test": TEST}
    return write_cifar(root / "cifar-100-python", batches, b"fine_labels", "meta", b"fine_label_names")


def svhn(root: Path) -> Path:
    for seed, (split, count) in enumerate((("train", TRAIN), ("test", TEST))):
        pixels = np.random.RandomState(seed).randint(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(count)[:, None] % 10 + 1})
    return root


def tiny_imagenet(root: Path) -> Path:
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\tone\nn2\ttwo\n")
    for number in range(TRAIN):
        wnid = f"n{number % 2 + 1}"
        write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", number, (64, 64))
    for number in range(TEST):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(encoded(number, (64, 64)))
    lines = [f"val_{number}.JPEG\tn{number % 2 + 1}\t0\t0\t9\t9\n" for number in range(TEST)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def imagefolder(root: Path, kinds: Sequence[str] = ("jpg", "png")) -> Path:
    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        write_image(root / split / "abc"[number % 3] / f"{number}.{kinds[number % len(kinds)]}", number)
    return root


WRITERS = {
    function.__name__.replace("_", "-"): function for function in (cifar10, cifar100, svhn, tiny_imagenet, imagefolder)
}


WRITERS["imagefolder of jpegs"] = functools.partial(imagefolder, kinds=("jpg",))


@pytest.fixture(params=["digits", *WRITERS])
def folder(request, tmp_path) -> Path:
    """Small shards of one source."""
    source = request.param
    raw = WRITERS[source](tmp_path) if source in WRITERS else None
    source = source.partition(" ")[0]
    make_shards(source, raw, tmp_path / "shards", samples_per_shard=10 if raw else None)
    return tmp_path / "shards"


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_sample_is_read_with_its_label_and_pixels_by_webdataset_and_timm(folder, split):
    data = open_data(str(folder), workers=0)
    mean, std = (np.array(data.normalization[key])[:, None, None] for key in ("mean", "std"))
    expected = [
        (np.rint((image.numpy() * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0), label)
        for images, labels in data.eval_batches(split, batch_size=64, rank=0, world_size=1)
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    assert len(expected) == data.num_samples(split) > 0

    shards = [str(folder / name) for name in data.index.split(split).filenames]
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("png;jpg", "cls")
    mode = "L" if data.index.channels == 1 else "RGB"
    read = [
        (np.asarray(image.convert(mode)).reshape(pixels.shape), label)
        for (image, label), (pixels, _) in zip(pipeline, expected, strict=True)
    ]
    assert [label for _, label in read] == [label for _, label in expected]
    assert all(np.array_equal(pixels, wanted) for (pixels, _), (wanted, _) in zip(read, expected, strict=True))

    reader = create_reader("wds/", str(folder), split=split, is_training=False, batch_size=1)
    found = [(np.asarray(image.convert(mode)), label) for image, label in reader]
    assert multiset(*zip(*found, strict=True)) == multiset(*zip(*expected, strict=True))


# The library takes no sets in which some images are JPEG and some PNG.
@pytest.mark.parametrize("folder", ["digits", *(name for name in WRITERS if name != "imagefolder")], indirect=True)
@pytest.mark.parametrize("split", ["train", "test"])
def test_datasets_streams_every_sample_with_its_label_as_a_number_and_its_pixels(folder, split, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when the library is imported
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import datasets

    shards = [str(folder / name) for name in read_index(folder).split(split).filenames]
    options = {"split": split, "streaming": True, "cache_dir": str(tmp_path)}
    streamed = datasets.load_dataset("webdataset", data_files={split: shards}, **options)
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode("pil").to_tuple("__key__", "png;jpg", "cls")
    for row, (key, image, label) in zip(streamed, pipeline, strict=True):
        assert (row["__key__"], row["cls"]) == (key, label)
        assert np.array_equal(np.asarray(row[("png" if "png" in row else "jpg")].convert("RGB")), np.asarray(image))
