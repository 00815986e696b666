"""What the user calls the data is found, made, or answered with one helpful line."""

import multiprocessing
from pathlib import Path

import fsspec
import pytest
import torch
from made_shards import make, numbered

from data_tools import ShardError, make_shards
from dist_prune.config import CacheConfig
from dist_prune.data import open_data


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def expect(location: str, message: str, **options) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        open_data(location, **options)
    assert "\n" not in str(caught.value)


def test_digits_are_made_on_first_use_and_kept(home):
    first = open_data("digits")
    made = (home / "digits" / "_info.json").stat().st_mtime_ns
    assert open_data("digits").index == first.index
    assert (home / "digits" / "_info.json").stat().st_mtime_ns == made
    assert [path.name for path in home.iterdir()] == ["digits"]


def test_processes_that_make_digits_at_once_all_get_them(home):
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        found = pool.map(open_data, ["digits"] * 3, chunksize=1)
    assert len({images.index.fingerprint for images in found}) == 1
    assert [path.name for path in home.iterdir()] == ["digits"]


def test_folder_index_pattern_and_name_are_the_same_data(home, tmp_path):
    index = make_shards("digits", None, home / "mine")
    pattern = str(home / "mine" / "digits-train-{000000..000003}.tar")
    for location in ("mine", str(home / "mine"), str(home / "mine" / "_info.json"), pattern):
        assert open_data(location).index == index


def test_data_at_a_url_is_read_through_a_cache_and_gives_the_same_batches(tmp_path):
    images, labels = numbered(60)
    make(tmp_path / "toy", {"train": (images, labels, (20, 25, 15))})
    fsspec.filesystem("memory").put(str(tmp_path / "toy"), "/bucket/toy", recursive=True)
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    found = []
    for location in (str(tmp_path / "toy"), "memory://bucket/toy"):
        data = open_data(location, workers=1, cache=cache)
        found += [list(data.train_batches(0, micro_batch=20, global_batch=20, rank=0, world_size=1))]
    for (first, second, _), (third, fourth, _) in zip(*found, strict=True):
        assert torch.equal(first, third)
        assert torch.equal(second, fourth)
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


def test_a_data_set_that_is_not_made_yet_is_answered_with_the_command(home):
    expect(
        "cifar10",
        f"^dataset 'cifar10' not found; create it with dist-prune shards make cifar10 --out {home / 'cifar10'}$",
    )


def test_a_folder_of_shards_that_is_called_like_a_data_set_is_found_unless_one_was_made_at_home(
    home, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    here = make_shards("digits", None, tmp_path / "cifar10")
    assert open_data("cifar10").index.root == Path("cifar10")
    assert open_data("cifar10").index.splits == here.splits
    make_shards("digits", None, home / "cifar10")
    assert open_data("cifar10").index.root == home / "cifar10"


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(home):
    make_shards("digits", None, home / "flowers")
    expect("flower", r"no dataset 'flower' \(did you mean 'flowers'\?\): expected .*cifar10, .*digits, flowers, .*svhn")
    expect("imagefolder", r"no dataset 'imagefolder'")


def test_paths_without_shards_are_named(home, tmp_path):
    expect(str(tmp_path / "nothing"), "no such folder")
    (tmp_path / "empty").mkdir()
    expect(str(tmp_path / "empty"), "no shards in")


def test_a_missing_shard_is_found_on_opening(home):
    index = open_data("digits").index
    (home / "digits" / index.splits["test"].filenames[0]).unlink()
    expect("digits", r"missing shard .*digits-test-000000\.tar")


def test_a_home_that_cannot_be_written_is_answered_with_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIST_PRUNE_DATA", str(tmp_path / "file"))
    expect("digits", "set DIST_PRUNE_DATA to a folder")


def test_something_else_in_the_place_of_digits_is_not_removed(home):
    (home / "digits").mkdir(parents=True)
    (home / "digits" / "notes.txt").write_text("mine")
    assert open_data("digits").num_samples("test") == 360
    assert (home / "digits" / "notes.txt").read_text() == "mine"
    assert [path.name for path in home.iterdir()] == ["digits"]


def test_negative_numbers_are_refused(home):
    expect("digits", "must not be negative", seed=-1)
    expect("digits", "must not be negative", workers=-1)
