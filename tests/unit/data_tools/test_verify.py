"""Verification finds nothing in whole shards, and names each broken shard and sample of others."""

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_helpers import encoded, members, pack, write_image

from data_tools import ShardError, make_shards, read_index, verify_shards

SHARD = "toy-train-000001.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Encoded images: train in 3 shards of 4, test in one."""
    root = tmp_path_factory.mktemp("verify")
    for number in range(12):
        write_image(root / "toy" / "train" / "ab"[number % 2] / f"{number}.jpg", number)
    for number in range(2):
        write_image(root / "toy" / "test" / "ab"[number] / f"{number}.jpg", number)
    make_shards("imagefolder", root / "toy", root / "shards", samples_per_shard=4)
    return root / "shards"


@pytest.fixture
def shards(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "shards"))


@pytest.fixture(scope="module")
def damaged(whole, tmp_path_factory):
    """A folder of shards to damage again and again, and the whole ones."""
    folder = tmp_path_factory.mktemp("damaged")
    make_shards("imagefolder", whole.parent / "toy", folder, samples_per_shard=4)
    return folder, {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.fixture
def digit_shards(tmp_path) -> Path:
    make_shards("digits", None, tmp_path / "digits")
    return tmp_path / "digits"


def accept(folder: Path) -> None:
    """Let the index agree with the bytes of the shards, so that only their content is wrong."""
    content = json.loads((folder / "_info.json").read_text())
    for split in content["splits"].values():
        split["bytes"] = [(folder / name).stat().st_size for name in split["filenames"]]
        split["sha256"] = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in split["filenames"]]
    (folder / "_info.json").write_text(json.dumps(content))


def repack(folder: Path, change) -> None:
    """Pack the second shard anew with other members, given and returned as (name, content)."""
    found = [
        (name, data)
        for name, data in members(folder, "train").items()
        if name.split("-")[1][:8] in ("00000004", "00000005", "00000006", "00000007")
    ]
    pack(folder / SHARD, change(found))
    accept(folder)


@pytest.mark.parametrize("workers", [1, 3])
def test_whole_shards_have_no_problems(shards, digit_shards, workers):
    assert verify_shards(shards, workers=workers) == []
    assert verify_shards(digit_shards, workers=workers) == []
    assert verify_shards(f"{shards}/toy-train-{{000000..000001}}.tar") == []


def test_a_missing_and_a_shortened_shard_are_named(shards):
    (shards / "toy-train-000002.tar").unlink()
    data = (shards / SHARD).read_bytes()
    (shards / SHARD).write_bytes(data[: data.index(b"train-00000007.cls") + 100])
    assert verify_shards(shards) == [
        f"{shards}/{SHARD}: found {(shards / SHARD).stat().st_size} bytes, expected {len(data)}",
        f"{shards}/{SHARD}: no header of a tar member at byte {data.index(b'train-00000007.cls')}",
        f"{shards}/toy-train-000002.tar: No such file or directory",
    ]


def test_a_tar_cut_between_members_is_not_taken_for_its_end(shards):
    data = (shards / SHARD).read_bytes()
    (shards / SHARD).write_bytes(data[: data.index(b"train-00000006.cls")])
    accept(shards)
    assert verify_shards(shards) == [f"{shards}/{SHARD}: 2 samples where the index says 4"]


def test_a_tar_cut_in_an_image_names_what_came_before(shards):
    data = (shards / SHARD).read_bytes()
    (shards / SHARD).write_bytes(data[: data.index(b"train-00000006.jpg") + 600])
    assert verify_shards(shards)[1:] == [f"{shards}/{SHARD}: it ends in the middle of train-00000006.jpg"]


def test_problems_before_the_cut_of_a_tar_are_kept(shards):
    repack(shards, lambda found: dict(found) | {"train-00000004.cls": b"9"})
    data = (shards / SHARD).read_bytes()
    (shards / SHARD).write_bytes(data[: data.index(b"train-00000006.jpg") + 600])
    accept(shards)
    assert verify_shards(shards) == [
        f"{shards}/{SHARD}: sample train-00000004: label '9' is none of the classes 0 to 1",
        f"{shards}/{SHARD}: it ends in the middle of train-00000006.jpg",
    ]


@pytest.mark.parametrize("where", ["header", "image", "label"])
def test_one_flipped_byte_is_found_wherever_it_is(shards, where):
    data = bytearray((shards / SHARD).read_bytes())
    header = data.index(b"train-00000006.cls")
    place = {"header": header + 3, "image": data.index(b"train-00000006.jpg") + 900, "label": header + 512}
    data[place[where]] ^= 8
    (shards / SHARD).write_bytes(data)
    problems = verify_shards(shards)
    assert problems[0] == f"{shards}/{SHARD}: its checksum differs from the index"
    if where == "header":
        assert problems[1].endswith(f"no header of a tar member at byte {header}")
    if where == "label":
        assert problems[1].startswith(f"{shards}/{SHARD}: sample train-00000006: label ")
    assert all(problem.startswith(f"{shards}/{SHARD}: ") for problem in problems)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), cut=st.booleans())
def test_no_damage_goes_unnoticed_and_none_is_an_exception(damaged, place, change, cut):
    folder, whole_shards = damaged
    for name, data in whole_shards.items():
        number = int(place * len(data))
        changed = bytes([data[number] ^ change])
        (folder / name).write_bytes(data[:number] + (b"" if cut else changed + data[number + 1 :]))
    problems = verify_shards(folder)
    assert {problem.split(": ")[0] for problem in problems} == {f"{folder}/{name}" for name in whole_shards}
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize("label", [b"2", b"-1", b"1.0.0", b"", b"cat", "\u0661".encode(), b"1" * 5000])
def test_a_label_that_is_no_class_is_named_with_its_sample(shards, label):
    repack(shards, lambda found: dict(found) | {"train-00000005.cls": label})
    shown = label.decode()[:20]
    assert verify_shards(shards) == [
        f"{shards}/{SHARD}: sample train-00000005: label {shown!r} is none of the classes 0 to 1"
    ]


def header(name: bytes, kind: bytes, size: int, real_size: int = 0) -> bytes:
    """A header of a tar member; ``real_size`` is that of a sparse file, of which ``size`` bytes are stored."""
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157] = name, b"%011o\0" % size, kind
    block[257:265], block[386:410] = b"ustar  \0", b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"%011o\0" % real_size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SPARSE = b"22 GNU.sparse.map=a,b\n".ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (header(b"k.jpg", b"S", 0, 8 * 2**30 - 1), "k.jpg is a sparse file"),
        (header(b"k", b"L", 2**33 - 1), "it ends in the middle of k"),
        (header(b"k", b"x", 22) + SPARSE + header(b"k", b"0", 0), "k is a sparse file"),
        (header(b"k", b"x", 30) + SPARSE, f"a damaged PAX record {bytes(8)!r}"),
        (header(b"k.jpg", b"0", 2**33 - 1), "it ends in the middle of k.jpg"),
    ],
)
def test_a_small_tar_that_claims_to_be_large_takes_no_memory(shards, content, problem):
    (shards / SHARD).write_bytes(content + bytes(1024))
    content = json.loads((shards / "_info.json").read_text())
    content["splits"]["train"]["shard_lengths"][1] = 1
    content["splits"]["train"]["num_samples"] = 9
    (shards / "_info.json").write_text(json.dumps(content))
    accept(shards)
    tracemalloc.start()
    problems = verify_shards(shards)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problems == [f"{shards}/{SHARD}: {problem}"]
    assert peak < 20e6


def test_an_image_that_makes_the_decoder_fail_in_its_own_way_is_named(shards, monkeypatch):
    def fail(image):
        raise AssertionError

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", fail)
    assert f"{shards}/{SHARD}: sample train-00000005: corrupt image (AssertionError)" in verify_shards(shards)


def test_an_image_that_is_too_large_is_named_and_not_read(shards, monkeypatch):
    monkeypatch.setattr("data_tools.tar.LARGEST_IMAGE", 100)
    size = len(members(shards, "train")["train-00000005.jpg"])
    problem = f"sample train-00000005: an image of {size} bytes, 100 are allowed"
    assert f"{shards}/{SHARD}: {problem}" in verify_shards(shards)


def test_a_corrupt_image_is_named_with_its_sample(shards):
    def cut(found):
        content = dict(found)
        return content | {"train-00000005.jpg": content["train-00000005.jpg"][:200], "train-00000006.jpg": b""}

    repack(shards, cut)
    first, second = verify_shards(shards)
    assert first.startswith(f"{shards}/{SHARD}: sample train-00000005: corrupt image (")
    assert second == f"{shards}/{SHARD}: sample train-00000006: empty image (0 bytes)"


def test_an_image_of_another_size_is_named(shards):
    repack(shards, lambda found: dict(found) | {"train-00000005.jpg": encoded(5, size=(7, 8))})
    assert verify_shards(shards) == [
        f"{shards}/{SHARD}: sample train-00000005: the image has the shape (3, 8, 7) where the index says (3, 10, 12)"
    ]


def test_samples_without_image_or_label_are_named(shards):
    def change(found):
        content = dict(found)
        del content["train-00000004.jpg"], content["train-00000005.cls"]
        return content | {"train-00000007.txt": b"a caption, which is no fault"}

    repack(shards, change)
    place = f"{shards}/{SHARD}: sample"
    assert verify_shards(shards) == [
        f"{place} train-00000004: 0 images where one is expected",
        f"{place} train-00000005: label '' is none of the classes 0 to 1",
    ]


def test_a_key_that_comes_twice_is_named_in_one_shard_and_across_shards(shards):
    names = {"train-00000006": "train-00000005", "train-00000007": "train-00000000"}

    def rename(found):
        return [(names.get(name[:14], name[:14]) + name[14:], data) for name, data in found]

    repack(shards, rename)
    assert verify_shards(shards) == [
        f"{shards}/{SHARD}: sample train-00000005: its key comes twice",
        f"{shards}/{SHARD}: sample train-00000000 is in toy-train-000000.tar too",
    ]


def test_many_problems_of_one_shard_are_counted(digit_shards):
    name = read_index(digit_shards).splits["test"].filenames[0]
    found = members(digit_shards, "test")
    pack(digit_shards / name, {key: b"77" if key.endswith(".cls") else data for key, data in found.items()})
    accept(digit_shards)
    problems = verify_shards(digit_shards)
    assert len(problems) == 21
    assert problems[-1] == f"{digit_shards}/{name}: and 340 more problems"


def test_places_without_shards_and_unknown_splits_are_errors(shards, tmp_path):
    with pytest.raises(ShardError, match="no such folder"):
        verify_shards(tmp_path / "nowhere")
    with pytest.raises(ShardError, match="no split 'val': it has train, test"):
        verify_shards(shards, split="val")
