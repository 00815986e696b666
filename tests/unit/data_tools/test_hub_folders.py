"""Folders and parquet files of the Hugging Face hub: ``datasets`` writes or reads what ours is held against."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from shard_helpers import encoded, files, write_image

from data_tools import ShardError, make_shards

COUNTS = {"train": 12, "validation": 4, "test": 5}
CLASSES = ("cat", "dog", "emu")


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    """The library, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    import datasets

    datasets.disable_progress_bars()
    return datasets


def rows() -> dict[str, list[tuple[str, bytes, int]]]:
    """Name, content and class of the images of each split."""
    start, found = 0, {}
    for split, count in COUNTS.items():
        found[split] = [(f"{n}.jpg", encoded(n), n % 3) for n in range(start, start + count)]
        start += count
    return found


def write_metadata(folder: Path, kind: str, entries: list[dict]) -> Path:
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    else:
        path.write_text("".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries))
    return path


def write_folder(root: Path, kind: str, at_root: bool, label: Callable[[int], object] = lambda n: CLASSES[n]) -> Path:
    everything = []
    for split, images in rows().items():
        (root / split / "deep").mkdir(parents=True)
        entries = []
        for name, data, number in images:
            (root / split / "deep" / name).write_bytes(data)
            entries.append({"file_name": f"deep/{name}", "text": "two\nlines, \u2028 and more", "label": label(number)})
        everything += [entry | {"file_name": f"{split}/{entry['file_name']}"} for entry in entries]
        if not at_root:
            write_metadata(root / split, kind, entries)
    if at_root:
        write_metadata(root, kind, everything)
    return root


def expected(split: str) -> list[tuple[bytes, int]]:
    return sorted((data, label) for _, data, label in rows()[split])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("at_root", [False, True])
@pytest.mark.parametrize("label", [lambda n: CLASSES[n], lambda n: n], ids=["names", "numbers"])
def test_labels_are_those_of_metadata_files(tmp_path, kind, at_root, label):
    root = write_folder(tmp_path / "animals", kind, at_root, label)
    index = make_shards("imagefolder", root, tmp_path / "out")
    assert index.class_names == (CLASSES if label(0) == "cat" else ("0", "1", "2"))
    assert {name: split.num_samples for name, split in index.splits.items()} == COUNTS
    for split in COUNTS:
        assert sorted(files(tmp_path / "out", split)) == expected(split)


def test_datasets_reads_the_same_of_a_folder_with_metadata(tmp_path, datasets):
    root = write_folder(tmp_path / "animals", "jsonl", at_root=False)
    make_shards("imagefolder", root, tmp_path / "out")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    for split in COUNTS:
        read = sorted((np.asarray(row["image"]).tobytes(), CLASSES.index(row["label"])) for row in theirs[split])
        ours = [(np.asarray(Image.open(io.BytesIO(data))).tobytes(), n) for data, n in files(tmp_path / "out", split)]
        assert sorted(ours) == read


def test_images_without_folders_of_splits_are_divided_on_request(tmp_path):
    (tmp_path / "flat").mkdir()
    for name, data, _ in rows()["train"]:
        (tmp_path / "flat" / name).write_bytes(data)
    entries = [{"file_name": name, "label": CLASSES[label]} for name, _, label in rows()["train"]]
    write_metadata(tmp_path / "flat", "csv", entries)
    with pytest.raises(ShardError, match="--test_fraction"):
        make_shards("imagefolder", tmp_path / "flat", tmp_path / "out")
    index = make_shards("imagefolder", tmp_path / "flat", tmp_path / "out", test_fraction=0.25)
    assert (index.splits["train"].num_samples, index.splits["test"].num_samples) == (9, 3)
    assert sorted(files(tmp_path / "out", "train") + files(tmp_path / "out", "test")) == expected("train")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"label": [0, 1]}, r"line 1: its label is '\[0, 1\]', several labels of one image \(multi-label\)"),
        ({"labels": ["cat", "dog"]}, r"its labels is '\[\"cat\", \"dog\"\]', several labels"),
        ({"label": "0, 2"}, "several labels of one image"),
        ({"label": 0.73}, r"its label is '0.73', a number with decimals \(regression\)"),
        ({"cat": 1, "dog": 0}, "it has file_name, cat, dog: expected file_name and one of label, "),
        ({"label": None}, "line 1: its label is empty"),
        ({"label": {"a": 1}}, "label is .*expected one number or text"),
        ({"file_name": "../0.jpg", "label": 0}, r"\.\./0\.jpg is not in .*train or below it"),
        ({"file_name": "/0.jpg", "label": 0}, r"/0\.jpg is not in .*train or below it"),
        ({"file_name": "none.jpg", "label": 0}, "cannot read .*none.jpg: No such file"),
        ({"file_name": "", "label": 0}, "it has no file_name"),
    ],
)
def test_metadata_that_give_no_class_are_refused_in_one_line(tmp_path, entry, said):
    write_image(tmp_path / "raw" / "train" / "0.jpg", 0)
    write_metadata(tmp_path / "raw" / "train", "jsonl", [{"file_name": "0.jpg"} | entry])
    with pytest.raises(ShardError, match=said) as caught:
        make_shards("imagefolder", tmp_path / "raw", tmp_path / "out", test_fraction=0.5)
    assert "\n" not in str(caught.value)


def test_what_metadata_leave_out_name_twice_or_spoil_is_refused(tmp_path):
    root = write_folder(tmp_path / "animals", "csv", at_root=False)

    def refused(said: str) -> None:
        with pytest.raises(ShardError, match=said):
            make_shards("imagefolder", root, tmp_path / "out")

    write_image(root / "train" / "more.jpg", 99)
    refused(r"train/more\.jpg is in no metadata file: name it there, or remove it")
    (root / "train" / "more.jpg").unlink()
    path = root / "train" / "metadata.csv"
    whole = path.read_text()
    path.write_text(whole + "deep/0.jpg,again,dog\n")
    refused(r"metadata\.csv, line 26: deep/0\.jpg comes twice, but one class for each image is expected")
    path.write_bytes(b"file_name,label\n\xff,cat\n")
    refused(r"metadata\.csv is damaged")
    path.write_text("file_name,label\n")
    refused(r"metadata\.csv names no images")
    path.write_text(whole.replace(",emu", ",owl"))
    refused("has the class 'emu', which train has not")


@pytest.mark.parametrize("names", [("Train", "VALID", "testing"), ("training", "dev", "test")])
def test_a_folder_of_each_split_by_any_of_its_names(tmp_path, names):
    for folder, split in zip(names, COUNTS, strict=True):
        for name, data, label in rows()[split]:
            path = tmp_path / "animals" / folder / CLASSES[label] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    index = make_shards("imagefolder", tmp_path / "animals", tmp_path / "out")
    assert index.splits["validation"].filenames == ("animals-validation-000000.tar",)
    for split in COUNTS:
        assert sorted(files(tmp_path / "out", split)) == expected(split)


def table(datasets, split: str, label: object = None):
    label = label or datasets.ClassLabel(names=list(CLASSES))
    images = rows()[split]
    content = {"image": [{"bytes": data, "path": name} for name, data, _ in images], "label": [n for *_, n in images]}
    return datasets.Dataset.from_dict(content, datasets.Features({"image": datasets.Image(), "label": label}))


@pytest.mark.parametrize(
    "place", ["data/{}-00000-of-00001.parquet", "{}-00000-of-00001-a9ec862f0ad2b4c5.parquet", "default/{}/0000.parquet"]
)
def test_parquet_files_that_datasets_writes_are_read(tmp_path, datasets, place):
    for split in COUNTS:
        path = tmp_path / "animals" / place.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        table(datasets, split).to_parquet(str(path))
    index = make_shards("imagefolder", tmp_path / "animals", tmp_path / "out")
    assert index.class_names == CLASSES
    for split in COUNTS:
        assert sorted(files(tmp_path / "out", split)) == expected(split)


def write_parquet(path: Path, labels: list, column: str = "label", image: str = "image", kind=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(number), "path": None} for number in range(len(labels))]
    parquet.write_table(pyarrow.table({image: images, column: pyarrow.array(labels, kind)}), path)


@pytest.mark.parametrize("column", ["label", "fine_label", "class_name"])
def test_names_and_unlabelled_test_images_and_columns_of_other_names(tmp_path, column):
    labels = ["b", "a", "ü", "a"]
    write_parquet(tmp_path / "set" / "train-0.parquet", labels, column, "img")
    write_parquet(tmp_path / "set" / "test-0.parquet", [None, None], column, "img", pyarrow.string())
    with pytest.raises(ShardError, match="--test_fraction"):
        make_shards("imagefolder", tmp_path / "set", tmp_path / "out")
    write_parquet(tmp_path / "set" / "validation-0.parquet", ["a", "ü"], column, "img")
    index = make_shards("imagefolder", tmp_path / "set", tmp_path / "out")
    assert index.class_names == ("a", "b", "ü")
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 4, "test": 2}
    assert sorted(files(tmp_path / "out", "test")) == sorted([(encoded(0), 0), (encoded(1), 2)])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0, 1], [2]], r"label holds list<.*>, several labels of one image \(multi-label\)"),
        ([0.25, 0.5], "label holds double, regression"),
        ([True, False], "label holds bool, no classes"),
    ],
)
def test_parquet_files_without_one_class_for_each_image_are_refused(tmp_path, labels, said):
    write_parquet(tmp_path / "set" / "train-0.parquet", labels)
    with pytest.raises(ShardError, match=said):
        make_shards("imagefolder", tmp_path / "set", tmp_path / "out", test_fraction=0.5)


def test_missing_parts_and_several_sets_of_parquet_files_are_refused(tmp_path, datasets):
    path = tmp_path / "set" / "a" / "train-00000-of-00002.parquet"
    path.parent.mkdir(parents=True)
    table(datasets, "train").to_parquet(str(path))
    with pytest.raises(ShardError, match=r"set/a holds 1 of 2 parquet files of train: get the others"):
        make_shards("imagefolder", tmp_path / "set", tmp_path / "out", test_fraction=0.5)
    path = path.rename(path.with_name("train.parquet"))
    shutil.copytree(tmp_path / "set" / "a", tmp_path / "set" / "b")
    with pytest.raises(ShardError, match=r"train has parquet files in .*set/a and .*set/b: name the folder of one"):
        make_shards("imagefolder", tmp_path / "set", tmp_path / "out", test_fraction=0.5)
    assert make_shards("imagefolder", tmp_path / "set" / "a", tmp_path / "out", test_fraction=0.5).name == "a"
