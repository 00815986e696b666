"""Shards of others at a URL or behind a command are indexed once, by copies that stay in the cache."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset
from made_shards import encoded, numbered

from data_tools import ShardError, scanning, store
from data_tools.open_shards import Labelling, write_index
from dist_prune.config import CacheConfig
from dist_prune.data import open_data

COUNT, SHARDS = 24, 4


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    (folder / "val").mkdir()
    images, labels = numbered(COUNT)
    for split in ("train", "val"):
        pattern = str(folder / split / "x-%03d.tar")
        with webdataset.ShardWriter(pattern, maxcount=COUNT // SHARDS, verbose=0) as writer:
            for number in range(COUNT):
                png = encoded(images[number])
                writer.write({"__key__": f"{number:04d}", "png": png, "cls": int(labels[number]) % 3})
    return folder


@pytest.fixture
def bucket(folder):
    files = fsspec.filesystem("memory")
    files.put(str(folder), "/bucket/set", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


def opened(location: str, folder: Path, **options):
    cache = CacheConfig(folder=str(folder.parent / "cache"), retries=0)
    return open_data(location, cache=cache, workers=0, **options)


def pixels(data, split: str) -> list[torch.Tensor]:
    return [images for images, _ in data.eval_batches(split, batch_size=7, rank=0, world_size=1)]


PATTERN = "{train,val}/x-{000..003}.tar"


@pytest.mark.parametrize(
    "location",
    ["memory://bucket/set", f"memory://bucket/set/{PATTERN}", f"pipe:cat FOLDER/{PATTERN}", "FOLDER/list.txt"],
)
def test_they_are_the_same_data_wherever_they_lie(location, folder, bucket, capsys):
    names = [f"{split}/x-{number:03d}.tar" for split in ("train", "val") for number in range(SHARDS)]
    (folder / "list.txt").write_text("# mine\n" + "\n".join(f"memory://bucket/set/{name}" for name in names))
    here = opened(f"{folder}/{PATTERN}", folder)
    location = location.replace("FOLDER", str(folder))
    there = opened(location, folder)
    assert "made the index of" in capsys.readouterr().err
    for split in ("train", "test"):
        assert there.index.split(split).filenames == here.index.split(split).filenames
        assert all(map(torch.equal, pixels(there, split), pixels(here, split)))
    assert all(shard.sha256 for shard in there.index.shards())
    assert len(list((folder.parent / "cache").glob("*.tar"))) == 2 * SHARDS
    opened(location, folder)
    assert capsys.readouterr().err == ""


def test_timms_index_at_a_url_divides_the_shards(folder, bucket):
    splits = {"train": {"filenames": ["train/x-000.tar"]}, "validation": {"filenames": ["val/x-001.tar"]}}
    bucket.pipe("/bucket/set/_info.json", json.dumps({"splits": splits}).encode())
    data = opened("memory://bucket/set", folder)
    assert {name: split.filenames for name, split in data.index.splits.items()} == {
        "train": ("train/x-000.tar",), "test": ("val/x-001.tar",),
    }  # fmt: skip


def test_each_shard_is_copied_once_for_the_index_and_the_epoch(folder, bucket, monkeypatch):
    log, copy = folder.parent / "copied", store.copy_file

    def count(address: str, *rest):
        with open(log, "a") as file:  # by several processes
            print(address, file=file)
        copy(address, *rest)

    monkeypatch.setattr(store, "copy_file", count)
    data = opened(f"memory://bucket/set/{PATTERN}", folder)
    list(data.train_batches(0, micro_batch=6, global_batch=6, rank=0, world_size=1))
    copied = [line for line in log.read_text().splitlines() if line.endswith(".tar")]
    # The first one is also looked into for its labels.
    assert len(copied) == 2 * SHARDS + 1


def test_an_interrupted_index_goes_on_where_it_stopped(folder, monkeypatch, tmp_path):
    scan, done, left = scanning.Scanner.__call__, [], [3]

    def interrupted(self, task):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        done.append(task[1])
        return scan(self, task)

    monkeypatch.setattr(scanning.Scanner, "__call__", interrupted)
    whole = folder.parent / "whole.json"
    with pytest.raises(KeyboardInterrupt):
        write_index(str(folder), Labelling(), out=str(whole))
    assert not whole.exists()
    left[0] = 100
    # A shard that has changed meanwhile is scanned again, and so is one whose line is torn.
    changed = folder / "train" / "x-000.tar"
    changed.write_bytes(changed.read_bytes() + bytes(10240))
    journal = folder.parent / ".whole.json.scans"
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text("\n".join([lines[0], lines[1], lines[2][:200]]))
    done.clear()
    _, index = write_index(str(folder), Labelling(), out=str(whole))
    assert sorted(done) == sorted(
        {f"{s}/x-{n:03d}.tar" for s in ("train", "val") for n in range(4)} - {"train/x-001.tar"}
    )
    assert not journal.exists()
    assert index == write_index(str(folder), Labelling(), out=str(folder.parent / "again.json"))[1]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("memory://bucket/empty", "cannot read memory://bucket/empty/_info.json: not found"),
        ("memory://bucket/set/x-{000..001}.tar", r"cannot read memory://bucket/set/x-000\.tar: not found"),
        (
            "pipe:cat nowhere/_info.json",
            r"cannot read pipe:cat nowhere/_info\.json: the command ended with exit code 1",
        ),
        ("pipe:cat nowhere/x-{0..1}.tar", "cannot read pipe:cat nowhere/x-0.tar: the command ended with exit code 1"),
    ],
)
def test_what_is_not_there_is_named(location, told, folder, bucket):
    with pytest.raises(ShardError, match=told) as caught:
        opened(location, folder)
    assert "\n" not in str(caught.value)


def test_an_index_of_remote_shards_needs_a_place(folder, bucket, tmp_path):
    with pytest.raises(ShardError, match="is remote: say with --out where to write the index"):
        write_index("memory://bucket/set", Labelling())
    path, index = write_index("memory://bucket/set", Labelling(), out=str(tmp_path / "index.json"))
    bucket.put(str(path), "/bucket/set/_info.json")
    assert opened("memory://bucket/set", folder).index == index
