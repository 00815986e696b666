"""Shards hold what the source holds, in any size, and are the same every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_helpers import arrays, everything, multiset, write_image
from sklearn.datasets import load_digits

from data_tools import ShardError, make_shards
from data_tools.images import ImageFacts, ImageStatistics
from data_tools.sources import SOURCES
from data_tools.sources.base import ArraySplit, RawData, RawDataset
from data_tools.writers import TAR_END, plan_shards, sample_bytes

DIGITS = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
LABELS = load_digits().target


def test_digits_come_back_pixel_by_pixel_and_once_each(tmp_path):
    index = make_shards("digits", None, tmp_path)
    assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 1437, "test": 360}
    assert index.splits["train"].shard_lengths == (360, 360, 360, 357)
    assert index.image_shape == (1, 8, 8)
    found = [image for split in index.splits for image in multiset(*arrays(tmp_path, split))]
    assert sorted(found) == multiset(DIGITS, LABELS)


def test_digits_are_split_in_proportion(tmp_path):
    make_shards("digits", None, tmp_path)
    _, labels = arrays(tmp_path, "test")
    assert np.abs(np.bincount(labels) - np.bincount(LABELS) * 360 / 1797).max() < 1


def test_the_test_split_does_not_depend_on_the_seed_of_the_shuffle(tmp_path):
    for seed in (0, 1):
        make_shards("digits", None, tmp_path / str(seed), seed=seed)
    (first, one), (second, two) = (arrays(tmp_path / str(seed), "test") for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert multiset(first, one) == multiset(second, two)


def test_mean_and_deviation_are_those_of_the_train_pixels(tmp_path):
    index = make_shards("digits", None, tmp_path)
    pixels, _ = arrays(tmp_path, "train")
    assert index.mean == pytest.approx((pixels.mean() / 255,), abs=1e-6)
    assert index.std == pytest.approx((pixels.std() / 255,), abs=1e-6)


@settings(deadline=None)
@given(parts=st.lists(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=4), min_size=1, max_size=5))
def test_statistics_of_parts_add_up_to_those_of_the_whole_in_any_order(parts):
    rng = np.random.default_rng(0)
    whole, sums = ImageStatistics(), [ImageStatistics() for _ in parts]
    for part, statistics in zip(parts, sums, strict=True):
        for side, gray in part:
            pixels = rng.integers(256, size=(side, side, 1 if gray else 3), dtype=np.uint8)
            for seen in (whole, statistics):
                seen.see(ImageFacts(side, side, gray, "png"))
                seen.measure(pixels)
    added = ImageStatistics()
    for statistics in reversed(sums):
        added.merge(statistics)
    assert added.image_shape == whole.image_shape
    assert (added.pixels, added.sums, added.sums_of_squares) == (whole.pixels, whole.sums, whole.sums_of_squares)


@settings(deadline=None)
@given(sides=st.lists(st.integers(1, 40), min_size=1, max_size=30), limit=st.integers(1, 60_000))
def test_shards_by_bytes_hold_every_image_once_and_stay_under_the_limit(sides, limit):
    split = ArraySplit("toy", np.zeros((len(sides), 1, 1), np.uint8), [0] * len(sides))
    split.sizes[:] = [side**2 * 10 for side in sides]
    raw = RawData("toy", ("a",), {"train": split})
    plans = plan_shards("toy", raw, 0, None, limit).plans
    assert sorted(number for plan in plans for number in plan.numbers) == list(range(len(sides)))
    assert [plan.start for plan in plans] == np.cumsum([0] + [len(plan.numbers) for plan in plans[:-1]]).tolist()
    taken = [TAR_END + sum(sample_bytes(split, n) for n in plan.numbers) for plan in plans]
    assert all(size <= limit or len(plan.numbers) == 1 for size, plan in zip(taken, plans, strict=True))
    for size, after in zip(taken, plans[1:], strict=False):
        assert size + sample_bytes(split, after.numbers[0]) > limit, "the next image had no room"


@pytest.mark.parametrize("kind", ["digits", "noise"])
def test_shards_by_bytes_are_not_larger_than_asked_for(tmp_path, monkeypatch, kind):
    if kind == "noise":  # which PNG cannot compress
        pixels = np.random.RandomState(0).randint(0, 256, (500, 32, 32, 3), dtype=np.uint8)
        noise = RawData("noise", ("a",), {"train": ArraySplit("noise", pixels, [0] * 500)})
        monkeypatch.setitem(SOURCES, "noise", RawDataset(lambda *_: noise))
    index = make_shards(kind, None, tmp_path, bytes_per_shard=50_000)
    sizes = index.splits["train"].sizes
    assert max(sizes) <= 50_000
    assert min(sizes[:-1]) > 35_000
    assert index.splits["train"].num_samples == {"digits": 1437, "noise": 500}[kind]


def test_the_same_request_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    request = {"seed": 3, "samples_per_shard": 100}
    made = [make_shards("digits", None, tmp_path / str(n), workers=n, **request) for n in (1, 2, 5)]
    contents = [everything(tmp_path / str(n)) for n in (1, 2, 5)]
    assert contents[0] == contents[1] == contents[2]
    assert made[0].splits == made[2].splits


def test_other_shards_are_not_overwritten(tmp_path):
    make_shards("digits", None, tmp_path)
    before = everything(tmp_path)
    for request in ({"seed": 1}, {"samples_per_shard": 7}, {"bytes_per_shard": 9999}):
        with pytest.raises(ShardError, match="already holds other shards"):
            make_shards("digits", None, tmp_path, **request)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", ["digits-train-000000.tar", "digits-val-000009.tar"])
def test_tars_of_which_no_index_tells_are_neither_overwritten_nor_left_among_new_ones(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ShardError, match=rf"already holds {name}, which no _info\.json there lists"):
        make_shards("digits", None, tmp_path)
    assert everything(tmp_path) == {name: b"precious"}


def test_old_shards_whose_index_was_removed_are_not_left_among_new_ones(tmp_path):
    make_shards("digits", None, tmp_path)
    (tmp_path / "_info.json").unlink()
    before = everything(tmp_path)
    with pytest.raises(ShardError, match=r"already holds digits-test-000000\.tar"):
        make_shards("digits", None, tmp_path, seed=1)
    assert everything(tmp_path) == before


def test_other_files_in_the_folder_stay_where_they_are(tmp_path):
    others = ["mine.tar", "digits-notes.txt", ".digits.partial", ".making-mine", "notes.tar.json"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    make_shards("digits", None, tmp_path)
    assert all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_a_changed_source_is_noticed(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / "raw" / split / "a" / "1.png", 1)
    make_shards("imagefolder", tmp_path / "raw", tmp_path / "out")
    write_image(tmp_path / "raw" / "train" / "a" / "2.png", 2)
    with pytest.raises(ShardError, match="already holds other shards"):
        make_shards("imagefolder", tmp_path / "raw", tmp_path / "out")


def test_incomplete_shards_that_are_there_are_reported(tmp_path):
    index = make_shards("digits", None, tmp_path)
    (tmp_path / index.splits["test"].filenames[0]).unlink()
    with pytest.raises(ShardError, match="missing shard"):
        make_shards("digits", None, tmp_path)


@pytest.mark.parametrize("source", ["digits", "cifar10", "cifar100", "svhn", "tiny-imagenet"])
def test_test_fraction_is_refused_where_there_are_test_images(tmp_path, source):
    with pytest.raises(ShardError, match="remove --test_fraction"):
        make_shards(source, None, tmp_path / "out", test_fraction=0.1)


def test_a_test_fraction_is_refused_also_when_the_shards_are_there(tmp_path):
    make_shards("digits", None, tmp_path)
    with pytest.raises(ShardError, match="remove --test_fraction"):
        make_shards("digits", None, tmp_path, test_fraction=0.5)


def test_wrong_requests_are_one_line(tmp_path):
    with pytest.raises(ShardError, match=r"unknown source 'cifer10' \(did you mean 'cifar10'\?\); known: digits,"):
        make_shards("cifer10", None, tmp_path)
    with pytest.raises(ShardError, match="imagefolder needs a folder"):
        make_shards("imagefolder", None, tmp_path)
    with pytest.raises(ShardError, match="takes no folder"):
        make_shards("digits", tmp_path, tmp_path)
    for request in ({"samples_per_shard": 0}, {"bytes_per_shard": 0}, {"workers": 0}):
        with pytest.raises(ShardError, match="start at 1"):
            make_shards("digits", None, tmp_path, **request)
    with pytest.raises(ShardError, match="exclude each other"):
        make_shards("digits", None, tmp_path, samples_per_shard=10, bytes_per_shard=10)
    with pytest.raises(ShardError, match=r"seeds \(4294967296\) at 0"):
        make_shards("digits", None, tmp_path, seed=2**32)
    with pytest.raises(ShardError, match=r"^--out is empty: give a folder"):
        make_shards("digits", None, "")
    with pytest.raises(ShardError, match=r"^s3:// names no bucket or server"):
        make_shards("digits", None, "s3://")
    with pytest.raises(ShardError, match="no train/ in"):
        make_shards("imagefolder", tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot make the folder"):
        make_shards("digits", None, tmp_path / "file" / "below")
