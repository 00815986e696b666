"""Raw shards of earlier versions are refused by a line that converts them, and converted pixel by pixel."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from shard_helpers import arrays, members, multiset, pack

from data_tools import ShardError, make_shards, read_index, verify_shards
from dist_prune.data import open_data

COUNTS = {"train": (7, 4), "test": (5,)}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def write_raw(folder: Path, channels: int = 3, version: int = 3, name: str = "toy") -> dict:
    """Write raw shards with their index as earlier versions did; return pixels and labels by split."""
    rng = np.random.default_rng(0)
    held, splits = {}, {}
    for split, counts in COUNTS.items():
        parts, names = [], [f"{name}-{split}-{number:06d}.tar" for number in range(len(counts))]
        for number, count in enumerate(counts):
            pixels = rng.integers(0, 256, (count, 5, 6, channels), dtype=np.uint8)
            parts.append((pixels, rng.integers(0, 3, count)))
            key = f"{split}-{number:06d}"
            pack(folder / names[number], {f"{key}.images.npy": npy(pixels), f"{key}.labels.npy": npy(parts[-1][1])})
        held[split] = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        splits[split] = {
            "filenames": names,
            "shard_lengths": counts,
            "num_samples": sum(counts),
            "sha256": ["0" * 64] * len(counts),
            "bytes": [(folder / file).stat().st_size for file in names],
        }
    index = {"version": version, "name": name, "source": "cifar10", "seed": 0, "fingerprint": "x", "splits": splits}
    index |= {"class_names": list("abc"), "image_shape": [channels, 5, 6], "format": "raw"}
    index |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    index |= {} if version == 1 else {"class_titles": ["A", "B", "C"]}
    (folder / "_info.json").write_text(json.dumps(index))
    return held


@pytest.mark.parametrize(("version", "channels"), [(1, 3), (2, 1), (3, 3)])
def test_raw_shards_are_refused_by_the_command_that_converts_them_pixel_by_pixel(tmp_path, version, channels):
    old, new = tmp_path / "old", tmp_path / "new"
    held = write_raw(old, channels, version)
    for use in (read_index, verify_shards, lambda folder: open_data(str(folder))):
        with pytest.raises(ShardError) as caught:
            use(old)
        command = f"dist-prune shards make raw {old} --out NEW_FOLDER"
        assert (
            str(caught.value) == f"{old} holds raw shards, which this version no longer reads; convert them: {command}"
        )
    index = make_shards("raw", old, new, samples_per_shard=3, workers=2)
    assert index.class_names == tuple("abc")
    assert index.class_titles == (() if version == 1 else ("A", "B", "C"))
    assert index.image_shape == (channels, 5, 6)
    for split, (pixels, labels) in held.items():
        assert multiset(*arrays(new, split)) == multiset(pixels, labels)
    assert verify_shards(new) == []


def test_digits_that_an_earlier_version_made_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path))
    write_raw(tmp_path / "digits", channels=1, name="digits")
    assert open_data("digits").num_samples("train") == 1437
    assert all(name.endswith((".png", ".cls")) for name in members(tmp_path / "digits", "train"))
    assert not list(tmp_path.glob(".digits*.tmp"))


class Poison:
    def __reduce__(self):
        return os.abort, ()


IMAGES, LABELS = np.zeros((7, 5, 6, 3), np.uint8), np.zeros(7, np.int64)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"images": npy(np.array([Poison()]))}, "holds object in 1 dimensions, not uint8 in 4"),
        ({"images": npy(IMAGES.astype(np.float32))}, "holds float32 in 4 dimensions, not uint8 in 4"),
        ({"images": npy(np.asfortranarray(IMAGES))}, "not uint8 in 4"),
        ({"images": npy(IMAGES).replace(b"(7, 5,", b"(9, 5,")}, "has not the size of its array"),
        ({"images": npy(IMAGES).replace(b"}", b"(", 1)}, r"cannot be read as an array \("),
        ({"images": b"no array"}, r"cannot be read as an array \("),
        ({"images": npy(IMAGES[:6])}, "6 images of shape .* and 7 labels"),
        ({"labels": npy(LABELS - 1)}, "labels from -1 to -1, classes are 0 to 2"),
        ({"labels": npy(LABELS + 3)}, "labels from 3 to 3, classes are 0 to 2"),
        ({"more": b""}, "expected two members KEY.images.npy and KEY.labels.npy"),
    ],
)
def test_damaged_raw_shards_are_named_and_nothing_in_them_is_executed(tmp_path, parts, message):
    write_raw(tmp_path / "old")
    held = {"images": npy(IMAGES), "labels": npy(LABELS)} | parts
    pack(tmp_path / "old" / "toy-train-000000.tar", {f"train-000000.{name}.npy": data for name, data in held.items()})
    with pytest.raises(ShardError, match=rf"^damaged shard .*toy-train-000000\.tar: .*{message}.*; copy it again"):
        make_shards("raw", tmp_path / "old", tmp_path / "new")


def test_other_folders_are_no_raw_shards(tmp_path):
    make_shards("digits", None, tmp_path / "digits")
    with pytest.raises(ShardError, match=r"is no index of raw shards: format: "):
        make_shards("raw", tmp_path / "digits", tmp_path / "new")
    with pytest.raises(ShardError, match=r"^raw needs a folder"):
        make_shards("raw", None, tmp_path / "new")
