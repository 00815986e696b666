"""ImageNet is read from the original tars, the extracted trees and parquet files, always the same images."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from scipy.io import savemat
from shard_helpers import encoded, files, pack, real_data, write_image

from data_tools import ShardError, make_shards

WNIDS = ["n01440764", "n01443537", "n02084071"]
TRAIN = [(f"{WNIDS[n % 3]}_{n}.JPEG", encoded(n, size=(20 + n, 15)), n % 3) for n in range(12)]
VAL = [(f"ILSVRC2012_val_{n:08d}.JPEG", encoded(100 + n, size=(9, 9 + n)), n * 2 % 3) for n in range(1, 7)]
EXPECTED = {
    "train": sorted((data, label) for _, data, label in TRAIN),
    "test": sorted((data, label) for _, data, label in VAL),
}


def check(folder: Path, out: Path, classes=WNIDS) -> tuple[str, ...]:
    """Make shards, compare them to what the source holds, return the titles of the classes."""
    index = make_shards("imagenet", folder, out)
    assert index.class_names == tuple(classes)
    assert index.image_shape is None
    for split, expected in EXPECTED.items():
        assert sorted(files(out, split)) == expected
    return index.class_titles


def devkit() -> dict[str, bytes]:
    """The two lists, with synsets numbered in another order than that of their names, as they are."""
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    synsets = np.zeros((4, 1), kinds)
    for row, (number, wnid, words, children) in enumerate(
        [(1, WNIDS[2], "dog", 0), (2, WNIDS[0], "tench, Tinca tinca", 0), (3, WNIDS[1], "goldfish", 0)]
        + [(4, "n00001740", "entity", 3)]
    ):
        synsets[row, 0] = (number, wnid, words, children)
    stream = io.BytesIO()
    savemat(stream, {"synsets": synsets})
    numbers = {2: 1, 0: 2, 1: 3}
    truth = "".join(f"{numbers[label]}\n" for _, _, label in VAL)
    inside = "ILSVRC2012_devkit_t12/data"
    return {f"{inside}/meta.mat": stream.getvalue(), f"{inside}/ILSVRC2012_validation_ground_truth.txt": truth.encode()}


@pytest.fixture
def tars(tmp_path) -> Path:
    """The three files as image-net.org hands them out."""
    folder = tmp_path / "tars"
    inner = {
        f"{wnid}.tar": pack(
            tmp_path / "inner.tar", {name: data for name, data, label in TRAIN if WNIDS[label] == wnid}
        ).read_bytes()
        for wnid in reversed(WNIDS)
    }
    pack(folder / "ILSVRC2012_img_train.tar", inner)
    pack(folder / "ILSVRC2012_img_val.tar", {name: data for name, data, _ in reversed(VAL)})
    pack(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit(), "w:gz")
    return folder


def write_train(root: Path) -> None:
    for name, data, label in TRAIN:
        (root / "train" / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        (root / "train" / WNIDS[label] / name).write_bytes(data)


def write_flat_val(root: Path) -> None:
    (root / "val").mkdir()
    for name, data, _ in VAL:
        (root / "val" / name).write_bytes(data)


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """Kaggle's tree: a flat val, and the lists three folders above."""
    root = tmp_path / "kaggle"
    write_train(root / "ILSVRC/Data/CLS-LOC")
    write_flat_val(root / "ILSVRC/Data/CLS-LOC")
    rows = [f"{Path(name).stem},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8\n" for name, _, label in VAL]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))
    (root / "LOC_synset_mapping.txt").write_text(f"{WNIDS[0]} tench, Tinca tinca\n{WNIDS[2]} dog\n")
    return root


def test_original_tars_are_read_where_they_are(tars, tmp_path):
    titles = ("tench, Tinca tinca", "goldfish", "dog")
    assert check(tars, tmp_path / "folder") == titles
    assert check(tars / "ILSVRC2012_img_train.tar", tmp_path / "file") == titles
    for name, data in devkit().items():
        (tars / name).parent.mkdir(parents=True, exist_ok=True)
        (tars / name).write_bytes(data)
    (tars / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert check(tars, tmp_path / "unpacked") == titles


def test_several_processes_read_the_tars_like_one(tars, tmp_path):
    first = make_shards("imagenet", tars, tmp_path / "1", samples_per_shard=2)
    second = make_shards("imagenet", tars, tmp_path / "3", samples_per_shard=2, workers=3)
    assert first.splits == second.splits


def test_the_extracted_tree_is_read_from_any_of_its_folders(kaggle, tmp_path):
    titles = ("tench, Tinca tinca", WNIDS[1], "dog")
    assert check(kaggle, tmp_path / "top") == titles
    assert check(kaggle / "ILSVRC/Data/CLS-LOC", tmp_path / "below") == titles


def test_a_flat_val_may_have_the_devkit_for_its_labels(tmp_path):
    root = tmp_path / "tree"
    write_train(root)
    write_flat_val(root)
    with pytest.raises(ShardError, match=r"classes of the validation images are not in .*put ILSVRC2012_devkit"):
        make_shards("imagenet", root, tmp_path / "out")
    pack(root / "ILSVRC2012_devkit_t12.tar.gz", devkit(), "w:gz")
    check(root, tmp_path / "out")


def test_a_val_with_class_folders_needs_no_lists(tmp_path):
    root = tmp_path / "tree"
    write_train(root)
    for name, data, label in VAL:
        (root / "val" / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        (root / "val" / WNIDS[label] / name).write_bytes(data)
    assert check(root, tmp_path / "out") == ()


def write_parquet(path: Path, images: list, names: list[str] | None, kind=None) -> None:
    """A file as Hugging Face exports it."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table(
        {
            "image": pyarrow.array([{"bytes": data, "path": name} for name, data, _ in images], kind or image),
            "label": pyarrow.array([label for _, _, label in images], pyarrow.int64()),
        }
    )
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=5)


@pytest.mark.parametrize("names", [["tench", "goldfish", "dog"], None])
def test_parquet_exports_are_read(tmp_path, monkeypatch, names):
    monkeypatch.setattr("data_tools.sources.parquet.ROWS_AT_ONCE", 2)
    data = tmp_path / "raw" / "data"
    write_parquet(data / "train-00000-of-00002.parquet", TRAIN[:5], names)
    write_parquet(data / "train-00001-of-00002.parquet", TRAIN[5:], names)
    write_parquet(data / "validation-00000-of-00001.parquet", VAL, names)
    write_parquet(data / "test-00000-of-00001.parquet", [("x", b"no labels here", -1)], names)
    classes = names or ["0", "1", "2"]
    check(tmp_path / "raw", tmp_path / "above", classes)
    check(data, tmp_path / "inside", classes)
    check(data / "train-00000-of-00002.parquet", tmp_path / "file", classes)
    assert {path.suffix for path in (tmp_path / "inside").iterdir()} == {".tar", ".json"}, "nothing else is left"


def test_parquet_files_of_another_kind_are_refused(tmp_path):
    data = tmp_path / "data"
    write_parquet(data / "validation-0.parquet", VAL, None)
    train = data / "train-0.parquet"

    def refused(message: str) -> None:
        with pytest.raises(ShardError, match=message) as caught:
            make_shards("imagenet", tmp_path, tmp_path / "out")
        assert "\n" not in str(caught.value)

    write_parquet(train, [("x", b"image", -1)], None)
    refused(r"train-0\.parquet, row 0: it has no image or no label")
    write_parquet(train, TRAIN, ["only", "two"])
    refused("labels up to 2, but names 2 classes")
    write_parquet(train, [], None)
    refused(r"train-0\.parquet holds no images: get it again")
    pyarrow.parquet.write_table(pyarrow.table({"img": [1], "label": [2]}), train)
    refused(r"train-0\.parquet has the columns img, label: expected image")
    train.write_bytes(b"PAR1 and nothing else")
    refused(r"cannot read .*train-0\.parquet: .*get it again")


def test_what_is_missing_is_named(tars, tmp_path):
    def refused(message: str, folder: Path | None = tars) -> None:
        with pytest.raises(ShardError, match=message) as caught:
            make_shards("imagenet", folder, tmp_path / "out")
        assert "\n" not in str(caught.value)

    refused(r"imagenet needs its files: .*ILSVRC2012_img_train\.tar.*image-net\.org.*huggingface", None)
    refused(r"no ImageNet in .*nowhere: expected ILSVRC2012_img_train\.tar", tmp_path / "nowhere")
    whole = (tars / "ILSVRC2012_img_train.tar").read_bytes()
    (tars / "ILSVRC2012_img_train.tar").write_bytes(whole[: len(whole) // 2])
    refused(r"cannot read .*ILSVRC2012_img_train\.tar: ")
    (tars / "ILSVRC2012_img_train.tar").write_bytes(whole)
    (tars / "ILSVRC2012_img_val.tar").unlink()
    refused(r"cannot read .*ILSVRC2012_img_val\.tar: .*No such file")
    pack(tars / "ILSVRC2012_img_val.tar", {"ILSVRC2012_val_00000009.JPEG": b""})
    refused("no class is given for the image ILSVRC2012_val_00000009")
    pack(tars / "ILSVRC2012_devkit_t12.tar.gz", dict.fromkeys(devkit(), b"x"), "w:gz")
    refused("the development kit in .* is damaged")
    (tars / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"no archive")
    refused(r"cannot read .*ILSVRC2012_devkit_t12\.tar\.gz")
    (tars / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    (tars / "ILSVRC2012_devkit_t12").mkdir()
    refused(r"cannot read .*meta\.mat: No such file or directory; unpack ILSVRC2012_devkit")
    (tars / "ILSVRC2012_devkit_t12").rmdir()
    refused("the classes of the validation images are not in")


def test_a_damaged_image_in_a_tar_is_named(tars, tmp_path):
    pack(tars / "ILSVRC2012_img_val.tar", {VAL[0][0]: VAL[0][1][:200]})
    with pytest.raises(ShardError, match=r"ILSVRC2012_val_00000001\.JPEG: corrupt image"):
        make_shards("imagenet", tars, tmp_path / "out")


def test_a_tree_without_val_is_divided_on_request(tmp_path):
    for number in range(4):
        write_image(tmp_path / "raw" / "train" / "n01" / f"{number}.JPEG", number)
    index = make_shards("imagenet", tmp_path / "raw", tmp_path / "out", test_fraction=0.25)
    assert (index.splits["train"].num_samples, index.splits["test"].num_samples) == (3, 1)


def test_real_photographs_come_back_byte_for_byte(tmp_path):
    with tarfile.open(real_data("imagenet-sample-100.tar")) as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "imagenet-sample"
    photographs = sorted(root.glob("train/*/*.JPEG"))
    # The sample has no val; the same photographs serve for it, under names of their own.
    (root / "val").mkdir()
    rows = []
    for number, path in enumerate(photographs, start=1):
        (root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(path.read_bytes())
        rows.append(f"ILSVRC2012_val_{number:08d},{path.parent.name} 1 2 3 4\n")
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    index = make_shards("imagenet", root, tmp_path / "out", samples_per_shard=40)
    assert len(index.class_names) == 100
    expected = sorted((path.read_bytes(), index.class_names.index(path.parent.name)) for path in photographs)
    assert len(expected) == 100
    assert sorted(files(tmp_path / "out", "train")) == expected
    assert sorted(files(tmp_path / "out", "test")) == expected
