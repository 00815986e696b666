"""Shards that others made: counts, labels and pixels are those that webdataset itself reads from the same files."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from commands import quick, run_forked
from made_shards import encoded
from PIL import Image

from data_tools import ShardError, verify_shards
from data_tools.open_shards import Labelling, open_shards, write_index
from dist_prune.config import DataConfig
from dist_prune.data import open_data

COUNT, PER_SHARD, CLASSES = 22, 6, 4
NAMES = ("ant", "bee", "cat", "Zebra é")


@pytest.fixture(autouse=True)
def _own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))


def image(number: int) -> np.ndarray:
    """Pixels (6, 6, 3) of an image of its own; smooth, as JPEG likes it."""
    rows, columns = np.mgrid[0:6, 0:6]
    return np.stack([rows * 9 + number, columns * 9 + 2 * number, rows * columns + number], -1).astype(np.uint8)


def data(number: int, form: str) -> bytes:
    return encoded(image(number), form, **({"lossless": True} if form == "WEBP" else {}))


def by_writer(extension: str, form: str, label: Callable[[int], tuple[str, bytes]]) -> Callable[[Path], None]:
    """Shards that webdataset's own writer has made."""

    def make(folder: Path) -> None:
        pattern = str(folder / "set-train-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=PER_SHARD, encoder=False, verbose=0) as writer:
            for number in range(COUNT):
                name, content = label(number)
                writer.write({"__key__": f"s{number:04d}", extension: data(number, form), name: content})

    return make


def by_tar(dialect: str, prefix: str = "", key: str = "s{:04d}") -> Callable[[Path], None]:
    """Shards that the program tar has packed from a folder, which it names as well."""

    def make(folder: Path) -> None:
        for shard, first in enumerate(range(0, COUNT, PER_SHARD)):
            files = folder / "files"
            for number in range(first, min(first + PER_SHARD, COUNT)):
                path = files / key.format(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f"{path.name}.JPG").write_bytes(data(number, "JPEG"))
                path.with_name(f"{path.name}.cls").write_text(f"{number % CLASSES:02d}\n")
            what = f"{prefix}." if prefix else "."
            out = folder / f"set-train-{shard:06d}.tar"
            options = ["--sort=name", f"--format={dialect}"]
            subprocess.run(["tar", *options, "-cf", str(out), "-C", str(files), what], check=True)
            subprocess.run(["rm", "-r", str(files)], check=True)

    return make


def number_of_class(number: int) -> tuple[str, bytes]:
    return "cls", str(number % CLASSES).encode()


SETS = {
    "jpg+cls": by_writer("jpg", "JPEG", number_of_class),
    "png+cls": by_writer("png", "PNG", number_of_class),
    "jpeg+cls": by_writer("jpeg", "JPEG", number_of_class),
    "webp+cls": by_writer("webp", "WEBP", number_of_class),
    "PNG+cls, a line each": by_writer("PNG", "PNG", lambda n: ("cls", b"%d\n" % (n % CLASSES))),
    "jpg+json, numbers": by_writer("jpg", "JPEG", lambda n: ("json", json.dumps({"label": n % CLASSES}).encode())),
    "jpg+json, names": by_writer("jpg", "JPEG", lambda n: ("json", json.dumps({"cls": NAMES[n % 4]}).encode())),
    "png+txt, names": by_writer("png", "PNG", lambda n: ("txt", NAMES[n % CLASSES].encode())),
    "tar, GNU": by_tar("gnu"),
    "tar, PAX, long names": by_tar("posix", key="folder.v1/" + "long" * 30 + "/s{:04d}"),
    "tar, GNU, long names": by_tar("gnu", key="folder.v1/" + "long" * 30 + "/s{:04d}"),
    "tar, ustar, folders": by_tar("ustar", key="deep/" * 20 + "s{:04d}"),
    "tar, v7": by_tar("v7"),
}


def oracle(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(Label, pixels) of every sample, as webdataset reads them."""
    shards = [str(path) for path in sorted(folder.rglob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        (pixels,) = [v for k, v in sample.items() if k in ("jpg", "jpeg", "png", "webp")]
        (label,) = [
            str(next(iter(json.loads(v).values()))) if k == "json" else v.decode().strip()
            for k, v in sample.items()
            if k in ("cls", "json", "txt")
        ]
        yield label, np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB"))


def assert_same_as_webdataset(location: Path | str, folder: Path, ranks: int = 3, workers: int = 0) -> None:
    found = open_data(str(location), workers=workers)
    ours = [
        (found.class_names[label], pixels)
        for rank in range(ranks)
        for images, labels, _ in found.eval_batches("train", batch_size=4, rank=rank, world_size=ranks)
        for pixels, label in zip(pixels_of(found, images), labels.tolist(), strict=True)
    ]
    expected = list(oracle(folder))
    assert len(ours) == len(expected) == COUNT
    for (name, pixels), (label, wanted) in zip(ours, expected, strict=True):
        assert name == (str(int(label)) if label.isdigit() else label)
        assert np.array_equal(pixels, wanted)


def pixels_of(found, images: torch.Tensor) -> list[np.ndarray]:
    """Undo the normalization: (H, W, C), uint8, of each image."""
    mean, std = (torch.tensor(found.normalization[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return list((images * std + mean).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


# Each number of ranks with some number of workers, and each number of workers.
READERS = [(1, 0), (2, 1), (3, 2), (4, 0), (1, 3), (2, 4), (3, 0), (4, 1), (1, 2), (2, 0), (3, 1), (4, 2), (1, 4)]


@pytest.mark.parametrize(("name", "readers"), zip(SETS, READERS, strict=True))
def test_a_set_has_the_counts_labels_and_pixels_that_webdataset_reads(name, readers, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    SETS[name](folder)
    assert_same_as_webdataset(folder, folder, *readers)
    assert verify_shards(folder) == []


@pytest.mark.drill
@pytest.mark.parametrize("name", SETS)
def test_a_run_trains_on_each_set(name, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    SETS[name](folder)
    settings = ("global_batch_size=8", "epochs=1", "eval_share=0.2", "image_size=16")
    words = quick("--data", folder, "--out", tmp_path / "run", settings=settings)
    done = run_forked(*words, data_home=tmp_path / "home")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "sliced" / "model.safetensors").exists()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "set").mkdir()
    SETS["png+cls"](tmp_path / "set")
    return tmp_path / "set"


def test_shards_are_named_by_pattern_wildcard_list_and_the_indexes_of_timm_and_wids(folder):
    names = sorted(path.name for path in folder.glob("*.tar"))
    lengths = [PER_SHARD, PER_SHARD, PER_SHARD, COUNT - 3 * PER_SHARD]
    (folder / "list.txt").write_text("\n".join(["# mine", *names]))
    # An editor of Windows begins with a mark.
    (folder / "marked.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(names).encode())
    (folder / "wids.json").write_text(
        json.dumps(
            {"wids_version": 1, "shardlist": [{"url": n, "nsamples": c} for n, c in zip(names, lengths, strict=True)]}
        )
    )
    for location in ("set-train-{000000..000003}.tar", "set-train-*.tar", "list.txt", "marked.txt", "wids.json"):
        assert_same_as_webdataset(folder / location, folder)
    timm = {"train": {"filenames": names, "shard_lengths": lengths, "num_samples": COUNT}}
    (folder / "_info.json").write_text(json.dumps({"splits": timm}))
    assert_same_as_webdataset(folder, folder)


def test_some_shards_of_a_folder_are_a_data_set_of_their_own(folder):
    _, index = open_shards(str(folder / "set-train-{000001..000002}.tar"))
    assert index.split("train").shard_lengths == (PER_SHARD, PER_SHARD)


@pytest.mark.parametrize("name", ["val", "validation", "valid", "test"])
def test_splits_are_known_by_the_names_of_files_or_folders(name, tmp_path):
    folder = tmp_path / "set"
    for split in ("train", name):
        (folder / split).mkdir(parents=True)
        SETS["png+cls"](folder / split)
    # What webdataset's writer has called "train" lies in a folder of another split.
    for path in (folder / name).glob("*.tar"):
        path.rename(path.with_name(path.name.replace("-train-", "-")))
    assert verify_shards(folder) == []
    _, index = open_shards(str(folder))
    assert {split: found.num_samples for split, found in index.splits.items()} == {"train": COUNT, "test": COUNT}


def test_the_index_is_made_once_and_told_on_one_line(folder, capfd):
    first = open_shards(str(folder))[1]
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"made the index of {folder} in ")
    assert "train 22 images in 4 classes, labels in .cls" in told[0]
    assert open_shards(str(folder))[1] == first
    assert capfd.readouterr().err == ""
    (kept,) = (folder.parent / "home" / "indexes").glob("*.json")
    kept.write_bytes(b"")  # by a power failure
    assert open_shards(str(folder))[1] == first
    assert kept.stat().st_size
    (folder / "set-train-000003.tar").unlink()
    assert open_shards(str(folder))[1].split("train").num_samples == 3 * PER_SHARD


def test_an_index_can_be_written_beside_the_shards_with_names_and_checksums(folder, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES), "utf-8")
    path, written = write_index(str(folder), Labelling(classes=str(tmp_path / "names.txt")), checksums=True)
    assert path == folder / "_info.json"
    _, read = open_shards(str(folder))
    assert read == written
    assert read.class_names == NAMES
    assert all(shard.sha256 for shard in read.shards())
    _, some = open_shards(str(folder / "set-train-*[01].tar"))
    assert some.split("train").filenames == ("set-train-000000.tar", "set-train-000001.tar")
    with pytest.raises(ShardError, match="has an index already: move that"):
        write_index(str(folder / "set-train-*.tar"), Labelling())
    with pytest.raises(ShardError, match=r"no such folder: .*nowhere"):
        write_index(str(folder / "nowhere"), Labelling())


def write(folder: Path, samples: list[dict[str, bytes]]) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "odd.tar", "w") as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"s{number:04d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_bad_samples_are_counted_and_no_class_is_made_of_them(tmp_path):
    good = [{"png": data(n, "PNG"), "cls": b"%d" % (n % 4)} for n in range(600)]
    bad = [
        {"png": data(0, "PNG")}, {"cls": b"1"}, {"png": b"no image", "cls": b"2"},
        {"png": data(0, "PNG"), "cls": b"9" * 5000}, {"png": data(0, "PNG"), "cls": b"-1"},
    ]  # fmt: skip
    write(tmp_path / "set", [*good[:300], *bad, *good[300:]])
    found = open_data(str(tmp_path / "set"), workers=0, bad_data="skip")
    assert found.class_names == ("0", "1", "2", "3")
    batches = list(found.eval_batches("train", batch_size=50, rank=0, world_size=1))
    assert sum(len(labels) for _, labels, _ in batches) == 600
    assert found.skipped.take() == 5


def test_a_few_labels_that_are_no_classes_are_bad_samples_which_say_why(tmp_path):
    for name, label, why in (
        ("list", b"[1, 2]", "several labels of one"),
        ("number", b"0.5", "a number with decimals"),
    ):
        good = [{"png": data(n, "PNG"), "cls": b"%d" % (n % 4)} for n in range(200)]
        write(tmp_path / name, [{"png": data(0, "PNG"), "cls": label}, *good])
        found = open_data(str(tmp_path / name), workers=0)
        assert found.class_names == ("0", "1", "2", "3")
        with pytest.raises(
            ShardError, match=rf"odd.tar, sample s0000: label '.*' is none of the classes 0 to 3 but {why}"
        ):
            next(found.eval_batches("train", batch_size=8, rank=0, world_size=1))


def test_names_of_classes_that_are_given_may_look_like_numbers(tmp_path):
    names = ["1.5", "2.0", "no number"]
    write(tmp_path / "set", [{"png": data(n, "PNG"), "cls": names[n % 3].encode()} for n in range(30)])
    (tmp_path / "names.txt").write_text("\n".join(names))
    found = open_data(DataConfig(location=str(tmp_path / "set"), classes=str(tmp_path / "names.txt")), workers=0)
    ((_, labels, _),) = found.eval_batches("train", batch_size=30, rank=0, world_size=1)
    assert labels.tolist() == [n % 3 for n in range(30)]


def test_classes_may_be_named_in_any_script(tmp_path):
    names = sorted(["猫", "собака", "qué tal", "عربي", "v1.2.3", "🐶 dog", "e\u0301"])
    write(tmp_path / "set", [{"png": data(n, "PNG"), "cls": names[n % 7].encode() + b"\n"} for n in range(28)])
    found = open_data(str(tmp_path / "set"), workers=0)
    assert found.class_names == tuple(names)
    ((_, labels, _),) = found.eval_batches("train", batch_size=28, rank=0, world_size=1)
    assert labels.tolist() == [n % 7 for n in range(28)]


def test_numbers_that_start_at_one_are_names_so_that_no_class_is_empty(tmp_path):
    write(tmp_path / "set", [{"png": data(n, "PNG"), "cls": b"%d" % (1 + n % 12)} for n in range(24)])
    found = open_data(str(tmp_path / "set"), workers=0)
    assert found.class_names == tuple(str(n) for n in range(1, 13))
    ((_, labels, _),) = found.eval_batches("train", batch_size=24, rank=0, world_size=1)
    assert labels.tolist() == [n % 12 for n in range(24)]


def test_gray_images_among_colors_become_colors_and_the_first_one_does_not_decide(tmp_path):
    gray = encoded(image(3)[..., :1])
    write(tmp_path / "set", [{"png": gray, "cls": b"0"}, {"png": data(1, "PNG"), "cls": b"1"}])
    found = open_data(str(tmp_path / "set"), workers=0)
    assert found.input_shape == (3, 6, 6)
    ((images, *_),) = found.eval_batches("train", batch_size=2, rank=0, world_size=1)
    assert np.array_equal(pixels_of(found, images)[0], np.repeat(image(3)[..., :1], 3, -1))


def test_other_members_of_a_sample_are_passed_over_a_mask_of_it_too(tmp_path):
    sample = {"jpg": data(1, "JPEG"), "mask.png": data(2, "PNG"), "cls": b"0", "json": b"{}", "npy": b"x"}
    write(tmp_path / "set", [sample, sample | {"cls": b"1"}])
    found = open_data(str(tmp_path / "set"), workers=0)
    ((images, *_),) = found.eval_batches("train", batch_size=2, rank=0, world_size=1)
    expected = np.asarray(Image.open(io.BytesIO(data(1, "JPEG"))))
    assert np.array_equal(pixels_of(found, images)[0], expected)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([{"jpg": b"x"}], "no labels in .*: expected members .cls or .txt, or .json with a field label"),
        ([{"txt": b"x"}], "no labels in .*"),
        ([{"png": data(1, "PNG"), "txt": b"a long caption " * 30}], "holds no classes but texts such as 'a long"),
        ([{"png": data(1, "PNG"), "json": b'{"label": {"a": 1}}'}], "no label in .* can be read: expected one number"),
        ([{"png": data(1, "PNG"), "json": b'{"label": [1, 2]}'}], r"json in .*set holds '\[1, 2\]', several labels of"),
        ([{"png": data(1, "PNG"), "json": b'{"labels": ["cat"]}'}], r"holds '\[\"cat\"\]', several .*multi-label"),
        ([{"png": data(1, "PNG"), "json": b'{"label": 0.73}'}], "json in .*set holds '0.73', a number with decimals"),
        *[
            ([{"png": data(1, "PNG"), "cls": text}], "several labels")
            for text in (b"[1,2]", b"1,2", b"0 1 1", b"3|4\n")
        ],
        *[
            ([{"png": data(1, "PNG"), "cls": text}], "regression")
            for text in (b"0.73", b"-1.5", b".5\n", b"2e-05", b"3.0")
        ],
        ([{"png": b"x", "cls": b"1"}], "no readable image in the train shards of"),
        (
            [{"png": data(n, "PNG"), "txt": b"a photo of dog %d" % n} for n in range(50)],
            "holds 50 different texts in 50 labels, such as 'a photo of dog 10': captions are no classes",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(samples, said, tmp_path):
    write(tmp_path / "set", samples)
    with pytest.raises(ShardError, match=said):
        open_data(str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("set-train-{000000..000009}.tar", "names .*set-train-000004.tar, which is not there"),
        ("nothing-*.tar", "no file .*nothing-"),
        ("{a,b}" * 30 + ".tar", "names more than 1,000,000 shards"),
        ("{{a..z},b}" * 5 + ".tar", "names more than 1,000,000 shards"),
        ("x-{0..9999999}.tar", "names more than 1,000,000 shards"),
        ("two words.tar", "names of tars have letters, digits and _.+=@- only"),
        ("list.txt", "lists https://other/b.tar beside https://host/a.tar: expected plain URLs of one server"),
        ("chain.txt", "lists reference://x::https://host/refs/a.tar: expected plain URLs"),
        ("gone.txt", "gone.txt"),
        ("empty.txt", "empty.txt lists no shards"),
        ("index.json", "index.json is no list of shards; an index lies beside its shards and is called _info.json"),
        ("packed.tar", "packed.tar is compressed: unpack it, shards are plain tars"),
    ],
)
def test_locations_that_name_nothing_are_refused(location, said, folder):
    (folder / "list.txt").write_text("https://host/a.tar\nhttps://other/b.tar")
    (folder / "chain.txt").write_text("https://host/a.tar\nreference://x::https://host/refs/a.tar")
    (folder / "two words.tar").touch()
    (folder / "empty.txt").write_text("# none\n")
    (folder / "index.json").write_text('{"fingerprint": "of ours"}')
    (folder / "packed.tar").write_bytes(gzip.compress((folder / "set-train-000000.tar").read_bytes()))
    with pytest.raises(ShardError, match=said):
        open_data(str(folder / location))


def test_sparse_files_and_damaged_headers_are_refused(folder):
    shard = folder / "set-train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700])
    with pytest.raises(ShardError, match=r"damaged shard .*ends in the middle of"):
        open_data(str(folder))
    big = folder / "big.bin"
    with open(big, "wb") as file:
        file.truncate(2**24)
    subprocess.run(["tar", "--sparse", "--format=gnu", "-cf", str(shard), "-C", str(folder), "big.bin"], check=True)
    with pytest.raises(ShardError, match=r"big\.bin is a sparse file"):
        open_data(str(folder))
    subprocess.run(["tar", "--sparse", "--format=posix", "-cf", str(shard), "-C", str(folder), "big.bin"], check=True)
    with pytest.raises(ShardError, match="is a sparse file"):
        open_data(str(folder))
