"""Shards hold what the source holds, in either format and any size, and are the same every time."""

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_helpers import arrays, everything, files, multiset, write_image
from sklearn.datasets import load_digits

from data_tools import ShardError, make_shards
from data_tools.images import ImageFacts, ImageStatistics, decode_pixels
from data_tools.sources.base import ArraySplit, RawData
from data_tools.writers import FilesWriter, plan_shards

DIGITS = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
LABELS = load_digits().target


def test_digits_come_back_pixel_by_pixel_and_once_each_in_both_formats(tmp_path):
    raw = make_shards("digits", None, tmp_path / "raw")
    encoded = make_shards("digits", None, tmp_path / "files", format="files")
    for index in (raw, encoded):
        assert {name: split.num_samples for name, split in index.splits.items()} == {"train": 1437, "test": 360}
        assert index.splits["train"].shard_lengths == (360, 360, 360, 357)
        assert index.image_shape == (1, 8, 8)
    assert (raw.format, encoded.format) == ("raw", "files")
    found = [image for split in raw.splits for image in multiset(*arrays(tmp_path / "raw", split))]
    assert sorted(found) == multiset(DIGITS, LABELS)
    for split in raw.splits:
        pixels, labels = arrays(tmp_path / "raw", split)
        same = files(tmp_path / "files", split)
        assert [label for _, label in same] == labels.tolist()
        assert np.array_equal(np.stack([decode_pixels(data, 1) for data, _ in same]), pixels)


def test_a_raw_shard_is_two_arrays_that_can_be_mapped_where_they_lie(tmp_path):
    index = make_shards("digits", None, tmp_path)
    name = index.splits["train"].filenames[3]
    with tarfile.open(tmp_path / name) as tar:
        assert tar.getnames() == ["train-000003.images.npy", "train-000003.labels.npy"]
        images, labels = tar.getmembers()
        assert images.offset_data % 512 == 0
        with open(tmp_path / name, "rb") as file:
            file.seek(images.offset_data)
            assert np.lib.format.read_magic(file) == (1, 0)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            mapped = np.memmap(tmp_path / name, dtype, "r", file.tell(), shape)
        assert (shape, fortran, dtype) == ((357, 8, 8, 1), False, np.uint8)
        assert np.array_equal(mapped, np.load(io.BytesIO(tar.extractfile(images).read())))
        loaded = np.load(io.BytesIO(tar.extractfile(labels).read()))
        assert (loaded.shape, loaded.dtype) == ((357,), np.int64)


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
    writer = FilesWriter(raw)
    plans = plan_shards("toy", raw, 0, "files", None, limit).plans
    assert sorted(number for plan in plans for number in plan.numbers) == list(range(len(sides)))
    assert [plan.start for plan in plans] == np.cumsum([0] + [len(plan.numbers) for plan in plans[:-1]]).tolist()
    taken = [writer.shard_bytes + sum(writer.sample_bytes(split, n) for n in plan.numbers) for plan in plans]
    assert all(size <= limit or len(plan.numbers) == 1 for size, plan in zip(taken, plans, strict=True))
    for size, after in zip(taken, plans[1:], strict=False):
        assert size + writer.sample_bytes(split, after.numbers[0]) > limit, "the next image had no room"


@pytest.mark.parametrize("form", ["raw", "files"])
def test_shards_by_bytes_are_not_larger_than_asked_for(tmp_path, form):
    index = make_shards("digits", None, tmp_path, format=form, bytes_per_shard=50_000)
    sizes = index.splits["train"].sizes
    assert max(sizes) <= 50_000
    assert min(sizes[:-1]) > 35_000
    assert index.splits["train"].num_samples == 1437


def test_images_of_one_size_can_be_made_raw_and_keep_their_pixels(tmp_path):
    expected = {split: [] for split in ("train", "test")}
    for number in range(12):
        split, label = ("train", "test")[number // 8], number % 2
        kind = ["png", "jpg"][number % 3 == 0]
        gray = "L" if number % 5 == 0 else "RGB"
        data = write_image(tmp_path / "raw" / split / "ab"[label] / f"{number}.{kind}", number, mode=gray)
        expected[split].append((label, decode_pixels(data, 3).tobytes()))
    index = make_shards("imagefolder", tmp_path / "raw", tmp_path / "out", format="raw", samples_per_shard=3)
    assert (index.format, index.image_shape) == ("raw", (3, 10, 12))
    for split in expected:
        assert multiset(*arrays(tmp_path / "out", split)) == sorted(expected[split])


def test_images_of_several_sizes_cannot_be_made_raw(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / "raw" / split / "a" / "1.png", 1)
        write_image(tmp_path / "raw" / split / "a" / "2.png", 2, size=(5, 6))
    with pytest.raises(ShardError, match=r"a/1\.png has \(10, 12\).*a/2\.png \(6, 5\); remove --format raw"):
        make_shards("imagefolder", tmp_path / "raw", tmp_path / "out", format="raw")


def test_the_same_request_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    request = {"seed": 3, "samples_per_shard": 100}
    made = [make_shards("digits", None, tmp_path / str(n), workers=n, **request) for n in (1, 2, 5)]
    contents = [everything(tmp_path / str(n)) for n in (1, 2, 5)]
    assert contents[0] == contents[1] == contents[2]
    assert made[0].splits == made[2].splits


def test_other_shards_are_not_overwritten(tmp_path):
    make_shards("digits", None, tmp_path)
    before = everything(tmp_path)
    for request in ({"seed": 1}, {"samples_per_shard": 7}, {"bytes_per_shard": 9999}, {"format": "files"}):
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
    with pytest.raises(ShardError, match=r"unknown format 'row' \(did you mean 'raw'\?\)"):
        make_shards("digits", None, tmp_path, format="row")
    with pytest.raises(ShardError, match="no train/ in"):
        make_shards("imagefolder", tmp_path, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match="cannot make the folder"):
        make_shards("digits", None, tmp_path / "file" / "below")
