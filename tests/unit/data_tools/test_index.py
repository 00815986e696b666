"""The index is read back as it was written, and a wrong one is named."""

import contextlib
import json
import os
from pathlib import Path

import pytest

from data_tools import ShardError, make_shards, read_index


@pytest.fixture
def index_file(digits, tmp_path) -> Path:
    """A folder of its own that holds nothing but the index."""
    copy = tmp_path / "_info.json"
    copy.write_text((digits / "_info.json").read_text())
    return copy


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_folder_and_file_give_the_same_index(digits):
    assert read_index(digits) == read_index(digits / "_info.json") == read_index(str(digits))


def test_index_follows_timms_conventions(digits):
    split = json.loads((digits / "_info.json").read_text())["splits"]["train"]
    assert split["name"] == "train"
    assert split["num_samples"] == sum(split["shard_lengths"]) == 1437
    assert len(split["filenames"]) == len(split["shard_lengths"]) == len(split["sha256"]) == len(split["bytes"])


def test_pattern_restricts_the_split_it_names_and_no_other(digits):
    index = read_index(f"{digits}/digits-train-{{000001..000002}}.tar")
    whole = read_index(digits)
    assert index.splits["train"].filenames == ("digits-train-000001.tar", "digits-train-000002.tar")
    assert index.splits["train"].num_samples == 720
    assert index.splits["train"].sha256 == whole.splits["train"].sha256[1:3]
    assert index.splits["test"] == whole.splits["test"]


def test_pattern_with_an_unlisted_shard_is_refused(digits):
    with pytest.raises(ShardError, match=r"digits-train-000004\.tar.*does not list"):
        read_index(f"{digits}/digits-train-{{000003..000004}}.tar")


def test_missing_folder_and_folder_without_index_are_told_apart(tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        read_index(tmp_path / "nothing")
    with pytest.raises(ShardError, match="no shards in"):
        read_index(tmp_path)


def test_unreadable_json_is_named(tmp_path):
    (tmp_path / "_info.json").write_text('{"version": 1,')
    with pytest.raises(ShardError, match=r"_info\.json is no index of shards: [Ii]nvalid JSON"):
        read_index(tmp_path)


def test_json_that_is_nested_without_end_is_named(tmp_path):
    (tmp_path / "_info.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ShardError, match=r"_info\.json is no index of shards: [Ii]nvalid JSON"):
        read_index(tmp_path)


def _set(*keys):
    *path, value = keys

    def edit(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit


WRONG = {
    "version": (_set("version", 4), r"version: .*3, found 4"),
    "no splits": (_set("splits", {}), "splits: .* at least 1 item"),
    "empty split": (
        _set("splits", "train", {"filenames": [], "shard_lengths": [], "sha256": [], "bytes": [], "num_samples": 0}),
        "splits.train.filenames: .* at least 1 item",
    ),
    "escaping name": (_set("splits", "train", "filenames", 0, "../x.tar"), "pattern.*'../x.tar'"),
    "absolute name": (_set("splits", "train", "filenames", 0, "/etc/x.tar"), "filenames.0: .*pattern"),
    "pipe": (_set("splits", "train", "filenames", 0, "pipe:x.tar"), "filenames.0: .*pattern"),
    "twice": (_set("splits", "train", "filenames", 0, "digits-train-000001.tar"), "train: it lists a file twice"),
    "negative length": (_set("splits", "train", "shard_lengths", 0, -1), "train.shard_lengths.0: .*found -1"),
    "column missing": (_set("splits", "train", "sha256", []), "splits.train: its columns differ in length"),
    "wrong total": (_set("splits", "train", "num_samples", 5), "splits.train: num_samples is 5, its shards hold 1437"),
    "zero deviation": (_set("std", [0.0]), "std.0: .*found 0.0"),
    "channels": (_set("mean", [0.1, 0.2, 0.3]), "each of the 1 channels"),
    "shape": (_set("image_shape", [8, 8]), "image_shape.*found 8"),
    "titles": (_set("class_titles", ["zero"]), "one title for each class"),
    "class twice": (_set("class_names", 0, "1"), "class_names lists a name twice"),
    "more samples than bytes": (
        lambda content: content["splits"]["train"].update(shard_lengths=[5000, 360, 360, 357], num_samples=6077),
        "digits-train-000000.tar has 5000 samples in [0-9]+ bytes",
    ),
    "endless length": (_set("splits", "train", "shard_lengths", 0, 10**30), "train.shard_lengths.0: "),
    "endless shard": (_set("splits", "train", "bytes", 0, 10**30), "train.bytes.0: .*found 10+"),
    "endless image": (_set("image_shape", [1, 10**6, 10**6]), "image_shape has more than .* pixels"),
    "hardly a deviation": (_set("std", [1e-320]), "std.0: .*greater than"),
    "endless seed": (_set("seed", 2**32), "seed: .*less than"),
    "a file to train on and to test with": (
        lambda content: content["splits"].update(test=content["splits"]["train"]),
        r"both 'train' and 'test' list digits-train-00000\d\.tar",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_index_that_cannot_be_right_is_refused_in_one_line(index_file, case):
    edit, message = WRONG[case]
    change(index_file, edit)
    with pytest.raises(ShardError, match=message) as caught:
        read_index(index_file)
    assert "\n" not in str(caught.value)
    assert str(index_file) in str(caught.value)


def test_an_index_of_version_1_is_read_as_one_of_encoded_images(index_file):
    def make_older(content):
        content["version"] = 1
        del content["class_titles"]

    newer = read_index(index_file)
    change(index_file, make_older)
    assert read_index(index_file) == newer


def test_an_index_that_calls_its_shards_files_is_read(index_file):
    newer = read_index(index_file)
    change(index_file, _set("format", "files"))
    assert read_index(index_file) == newer


@pytest.mark.parametrize("key", ["name", "class_names", "image_shape", "splits", "fingerprint"])
def test_a_missing_key_is_named(index_file, key):
    change(index_file, lambda content: content.pop(key))
    with pytest.raises(ShardError, match=f"{key}: [Ff]ield required"):
        read_index(index_file)


def test_missing_and_shortened_shards_are_found_without_opening_them(tmp_path):
    index = make_shards("digits", None, tmp_path)
    index.check_files()
    victim = tmp_path / index.splits["train"].filenames[1]
    size = victim.stat().st_size
    os.truncate(victim, size - 512)
    with pytest.raises(ShardError, match=f"damaged shard {victim}: found {size - 512} bytes, expected {size}"):
        index.check_files()
    victim.unlink()
    with pytest.raises(ShardError, match=f"missing shard {victim}"):
        index.check_files()


def test_a_sidecar_that_another_maker_removes_while_the_files_are_listed_does_no_harm(digits, tmp_path, monkeypatch):
    for path in digits.iterdir():
        (tmp_path / path.name).symlink_to(path)
    index, sidecar = read_index(tmp_path), tmp_path / "digits-test-000000.tar.json"
    sidecar.touch()
    listed = os.scandir

    @contextlib.contextmanager
    def remove_once_listed(folder):
        with listed(folder) as entries:
            found = list(entries)
        sidecar.unlink()
        yield found

    monkeypatch.setattr(os, "scandir", remove_once_listed)
    index.check_files()


def test_unknown_split_names_those_there(digits):
    with pytest.raises(ShardError, match="no split 'val': it has train, test"):
        read_index(digits).split("val")
