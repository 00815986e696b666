"""What cannot be read ends the run with one line, or is left out, counted and named; with and without workers."""

import tarfile
from pathlib import Path

import pytest
import torch
from made_shards import make, numbered, numbers, read_tar, write_index, write_tar

from data_tools import ShardError, read_index
from data_tools.errors import LocalDiskError
from data_tools.store import open_store
from dist_prune.config import AugmentConfig
from dist_prune.data import ImageData, ReadingFailed, open_data
from dist_prune.data.reader import Reader

TRAIN, TEST = 64, 40
both = pytest.mark.parametrize("workers", [0, 1])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Encoded images: four shards of 16 to train with, two of 20 to test with."""
    images, labels = numbered(TRAIN)
    splits = {"train": (images, labels, (16,) * 4), "test": (images[:TEST], labels[:TEST], (20, 20))}
    make(tmp_path / "toy", splits)
    return tmp_path / "toy"


def data(folder: Path, workers: int = 0, bad_data: str = "skip", **options) -> ImageData:
    return ImageData(read_index(folder), open_store(folder), workers=workers, bad_data=bad_data, **options)


def evaluate(images: ImageData, **options) -> list[int]:
    options = {"batch_size": 8, "rank": 0, "world_size": 1} | options
    return [number for batch, *_ in images.eval_batches("test", **options) for number in numbers(batch)]


def train(images: ImageData) -> list[list[int]]:
    batches = images.train_batches(0, micro_batch=8, global_batch=16, rank=0, world_size=1)
    return [numbers(batch) for batch, *_ in batches]


def shard(folder: Path, number: int = 1) -> Path:
    return folder / f"toy-test-{number:06d}.tar"


def replace(path: Path, name: str, data: bytes) -> None:
    write_tar(path, [(key, data if key == name else old) for key, old in read_tar(path)])


def damage_image(folder: Path) -> str:
    replace(shard(folder), "train-00000025.png", b"\x89PNG\r\n\x1a\nbroken")
    return f"{shard(folder)}, sample train-00000025: corrupt image"


def empty_image(folder: Path) -> str:
    replace(shard(folder), "train-00000025.png", b"")
    return f"{shard(folder)}, sample train-00000025: empty image"


def wrong_label(folder: Path) -> str:
    replace(shard(folder), "train-00000025.cls", b"10")
    return f"{shard(folder)}, sample train-00000025: label '10' is none of the classes 0 to 9"


def label_in_words(folder: Path) -> str:
    replace(shard(folder), "train-00000025.cls", "\N{SUPERSCRIPT TWO}".encode())
    return f"{shard(folder)}, sample train-00000025: label '\N{SUPERSCRIPT TWO}' is none of the classes 0 to 9"


def endless_label(folder: Path) -> str:
    replace(shard(folder), "train-00000025.cls", b"9" * 5000)
    return f"{shard(folder)}, sample train-00000025: label '{'9' * 20}' is none of the classes 0 to 9"


def no_label(folder: Path) -> str:
    write_tar(shard(folder), [member for member in read_tar(shard(folder)) if member[0] != "train-00000025.cls"])
    return f"{shard(folder)}, sample train-00000025 lacks its image or its label"


@both
@pytest.mark.parametrize("spoil", [damage_image, empty_image, wrong_label, label_in_words, endless_label, no_label])
def test_a_bad_sample_is_an_error_in_one_line_or_is_left_out_and_told(folder, workers, spoil, capfd):
    message = spoil(folder)
    with pytest.raises(ShardError) as caught:
        evaluate(data(folder, workers, "error"))
    assert type(caught.value) is ShardError
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    images = data(folder, workers)
    assert evaluate(images) == [number for number in range(TEST) if number != 25]
    assert images.skipped.take() == 1
    assert images.skipped.take() == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("skipped: ")
    assert message in line


def cut_shard(folder: Path) -> str:
    with tarfile.open(shard(folder)) as tar:
        boundary = next(member.offset for member in tar if member.name == "train-00000030.cls")
    shard(folder).write_bytes(shard(folder).read_bytes()[:boundary])
    return f"damaged shard {shard(folder)}: found 10 samples, expected 20"


def remove_shard(folder: Path) -> str:
    shard(folder).unlink()
    return f"missing shard {shard(folder)}"


@both
@pytest.mark.parametrize("spoil", [cut_shard, remove_shard])
def test_a_bad_shard_is_an_error_or_all_of_its_samples_are_left_out_and_it_is_told_once(folder, workers, spoil, capfd):
    message = spoil(folder)
    with pytest.raises(ShardError, match=message):
        evaluate(data(folder, workers, "error"))
    images = data(folder, workers)
    assert evaluate(images) == list(range(20))
    assert images.skipped.take() == 20
    assert capfd.readouterr().err.count("skipped: ") == 1


@both
def test_training_batches_become_shorter_and_the_other_images_stay_what_they_were(folder, workers):
    options = {"augment": AugmentConfig(crop_padding=1, flip=True, mixup=0.5, cutout=1), "workers": workers}
    settings = {"micro_batch": 8, "global_batch": 16, "rank": 0, "world_size": 1}
    plain = train(data(folder))
    before = list(data(folder, **options).train_batches(0, **settings))
    at = next(number for number, batch in enumerate(plain) if 20 in batch)
    replace(folder / "toy-train-000001.tar", "train-00000020.cls", b"?")
    images = data(folder, **options)
    after = list(images.train_batches(0, **settings))
    assert [len(labels) for _, labels, _ in after] == [7 if n == at else 8 for n in range(len(before))]
    assert images.skipped.take() == 1
    for number, ((old, *_), (new, *_)) in enumerate(zip(before, after, strict=True)):
        if number == at:
            lost = plain[at].index(20)  # the image before it is mixed with the one behind it now
            kept = [row for row in range(8) if row not in (lost, (lost - 1) % 8)]
            torch.testing.assert_close(new[[row - (row > lost) for row in kept]], old[kept])
        else:
            assert torch.equal(old, new)


@both
def test_a_training_batch_of_which_nothing_is_left_is_an_error_because_other_ranks_wait_for_it(folder, workers):
    for path in folder.glob("toy-train-*.tar"):
        path.unlink()
    with pytest.raises(ShardError, match="all 8 images of a batch are unreadable: fix the data"):
        train(data(folder, workers))


def test_an_evaluation_batch_of_which_nothing_is_left_is_passed_over(folder):
    remove_shard(folder)
    batches = list(data(folder).eval_batches("test", batch_size=20, rank=0, world_size=1))
    assert [len(labels) for _, labels, _ in batches] == [20]


def test_a_bad_sample_is_told_once_but_counted_each_time(folder, capfd):
    damage_image(folder)
    images = data(folder)
    evaluate(images)
    evaluate(images)
    assert images.skipped.take() == 2
    assert capfd.readouterr().err.count("skipped: ") == 1


def test_shards_are_looked_for_on_opening_unless_missing_ones_are_to_be_left_out(folder):
    message = remove_shard(folder)
    with pytest.raises(ShardError, match=message):
        open_data(str(folder), workers=0)
    assert evaluate(open_data(str(folder), workers=0, bad_data="skip")) == list(range(20))


@both
def test_a_full_disk_skips_no_sample(folder, monkeypatch, workers):
    def fetch(store, shard):
        raise LocalDiskError("cannot write a copy to /cache: No space left on device")

    monkeypatch.setattr("data_tools.store.ShardStore.fetch", fetch)
    with pytest.raises(ShardError, match="cannot write a copy to /cache: No space left"):
        evaluate(data(folder, workers))


def test_an_image_of_another_size_than_the_index_says_is_named(folder):
    write_index(read_index(folder).model_copy(update={"image_shape": (1, 4, 5)}))
    with pytest.raises(ShardError, match="sample train-00000000: the image is 4 x 4 pixels where the index says 5 x 4"):
        evaluate(data(folder, bad_data="error"))


@both
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_what_nobody_foresaw_is_one_line_that_says_where_it_happened_under_any_policy(
    folder, workers, policy, monkeypatch
):
    def sample(*_):
        raise RuntimeError("no\nidea")

    monkeypatch.setattr(Reader, "sample", sample)
    with pytest.raises(ReadingFailed) as caught:
        evaluate(data(folder, workers, policy))
    assert str(caught.value).startswith("reading failed: RuntimeError: no idea (in sample, test_bad_data.py, line ")
