"""A shard gives every sample by its number, says what is wrong with it, and runs nothing that lies in it."""

import os
import pickle
import tarfile
from pathlib import Path

import pytest
from made_shards import encoded, members_of, numbered, write_tar

from data_tools import ShardError
from dist_prune.data.reader import MissingShard, open_shard

IMAGES, LABELS = numbered(20)


@pytest.fixture
def path(tmp_path) -> Path:
    write_tar(tmp_path / "toy.tar", members_of(IMAGES, LABELS, 100))
    return tmp_path / "toy.tar"


def refused(path: Path, message: str, length: int = 20) -> None:
    with pytest.raises(ShardError, match=message) as caught:
        open_shard(path, length)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_sample_is_had_by_its_number(path):
    shard = open_shard(path, 20)
    assert shard.length == 20
    for number in (19, 0, 7, 7):
        assert shard.image(number) == encoded(IMAGES[number])
        assert shard.label(number) == b"%d" % LABELS[number]
    assert shard.place(7) == f"{path}, sample train-00000107"


def test_a_name_given_stands_in_the_messages(path):
    assert open_shard(path, 20, "s3://bucket/toy.tar").place(3).startswith("s3://bucket/toy.tar, sample ")


@pytest.mark.parametrize("expected", [19, 21])
def test_another_number_of_samples_than_expected_is_noticed(path, expected):
    refused(path, f"found 20 samples, expected {expected}; make or copy it again", expected)


def test_a_missing_shard_is_named(path):
    path.unlink()
    refused(path, "^missing shard .*; make or copy it again")
    with pytest.raises(MissingShard):
        open_shard(path, 20)


def test_a_folder_in_the_place_of_a_shard_is_named(path):
    path.unlink()
    path.mkdir()
    refused(path, "^cannot read shard .*: Is a directory")


def test_a_file_that_is_no_tar_is_named(path):
    path.write_bytes(b"no tar at all" * 100)
    refused(path, "^damaged shard .*: no header of a tar member at byte 0")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_shard_cut_anywhere_is_noticed(path, share):
    with tarfile.open(path) as tar:
        end = max(member.offset_data + member.size for member in tar)
    whole = path.read_bytes()
    for cut in (int(share * end), int(share * end) // 512 * 512, end - 1):
        path.write_bytes(whole[:cut])
        refused(path, "^damaged shard")


def test_a_flipped_bit_in_any_header_is_noticed(path):
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar]
    whole = path.read_bytes()
    for offset in offsets:
        for byte in (3, 100, 130, 150, 156, 511):
            damaged = bytearray(whole)
            damaged[offset + byte] ^= 1
            path.write_bytes(damaged)
            refused(path, f"no header of a tar member at byte {offset}")


@pytest.mark.parametrize("size", [b"-0000001000", b"zzz", b"\xff" * 12, b"00000000009\0"])
def test_a_size_that_is_no_number_is_no_size(path, size):
    content = bytearray(path.read_bytes())
    content[124:136] = size.ljust(12, b"\0")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    refused(path, "no header of a tar member at byte 0")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_folders_and_pipes_are_passed_over(path, kind):
    info = tarfile.TarInfo("../../etc/passwd")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "a") as tar:
        tar.addfile(info)
    assert open_shard(path, 20).length == 20


def test_a_name_that_points_elsewhere_is_a_name_and_nothing_is_written(tmp_path):
    members = [("../../../outside/x.cls", b"3"), ("../../../outside/x.png", encoded(IMAGES[0]))]
    write_tar(tmp_path / "toy.tar", members)
    before = sorted(tmp_path.rglob("*"))
    shard = open_shard(tmp_path / "toy.tar", 1)
    assert (shard.label(0), shard.image(0)) == (b"3", members[1][1])
    assert shard.place(0).endswith(", sample ../../../outside/x")
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / "../../../outside").exists()


class Poison:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_beside_the_samples_is_passed_over(tmp_path):
    members = members_of(IMAGES, LABELS, 0)
    write_tar(tmp_path / "toy.tar", [*members[:2], ("train-00000000.pyd", pickle.dumps(Poison())), *members[2:]])
    assert open_shard(tmp_path / "toy.tar", 20).label(19) == b"9"


def test_an_image_that_is_too_large_is_refused_and_the_others_are_read(tmp_path, monkeypatch):
    members = members_of(IMAGES, LABELS, 0)
    members[7] = ("train-00000003.png", bytes(1000))
    write_tar(tmp_path / "toy.tar", members)
    monkeypatch.setattr("data_tools.tar.LARGEST_IMAGE", 999)
    shard = open_shard(tmp_path / "toy.tar", 20)
    with pytest.raises(ShardError, match="sample train-00000003: an image of 1000 bytes, 999 are allowed"):
        shard.image(3)
    assert shard.image(4) == encoded(IMAGES[4])


def test_a_label_without_end_is_read_no_further_than_a_label_can_go(tmp_path, monkeypatch):
    monkeypatch.setattr("dist_prune.data.reader.LARGEST_LABEL", 32)
    members = members_of(IMAGES, LABELS, 0)
    members[6] = ("train-00000003.cls", b"3" * 10**6)
    write_tar(tmp_path / "toy.tar", members)
    assert open_shard(tmp_path / "toy.tar", 20).label(3) == b"3" * 32


def test_a_disk_that_fails_while_reading_is_one_line_with_the_shard(tmp_path, monkeypatch):
    write_tar(tmp_path / "toy.tar", members_of(IMAGES, LABELS, 0))
    shard = open_shard(tmp_path / "toy.tar", 20, "s3://x/toy.tar")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    for read in (shard.image, shard.label, shard.place):
        with pytest.raises(ShardError, match=r"^cannot read shard s3://x/toy\.tar: Input/output error$"):
            read(3)


def test_a_shard_that_becomes_shorter_while_it_is_read_is_named(tmp_path):
    write_tar(tmp_path / "toy.tar", members_of(IMAGES, LABELS, 0))
    shard = open_shard(tmp_path / "toy.tar", 20)
    os.truncate(tmp_path / "toy.tar", 600)
    with pytest.raises(ShardError, match=r"^damaged shard .*toy\.tar: it became shorter"):
        shard.image(19)


def test_a_sample_with_two_images_is_refused_and_the_others_are_read(tmp_path):
    members = members_of(IMAGES, LABELS, 0)
    members.insert(7, ("train-00000003.jpg", encoded(IMAGES[3], "JPEG")))
    write_tar(tmp_path / "toy.tar", members)
    shard = open_shard(tmp_path / "toy.tar", 20)
    with pytest.raises(ShardError, match=r"sample train-00000003 .*has two images"):
        shard.image(3)
    assert shard.image(4) == encoded(IMAGES[4])


def test_samples_of_one_name_in_several_folders_are_several(tmp_path):
    members = [
        (f"{folder}.x/7.{name.partition('.')[2]}", data)
        for folder, start in (("a", 3), ("b", 4))
        for name, data in members_of(IMAGES[start : start + 1], LABELS[start : start + 1], 0)
    ]
    write_tar(tmp_path / "toy.tar", members)
    shard = open_shard(tmp_path / "toy.tar", 2)
    assert [(shard.label(number), shard.place(number)[-14:]) for number in (0, 1)] == [
        (b"3", ", sample a.x/7"),
        (b"4", ", sample b.x/7"),
    ]


def test_a_sample_that_lacks_its_image_or_its_label_is_named_when_it_is_asked_for(tmp_path):
    members = members_of(IMAGES, LABELS, 0)
    del members[11], members[6]  # the image of sample 5, the label of sample 3
    write_tar(tmp_path / "toy.tar", members)
    shard = open_shard(tmp_path / "toy.tar", 20)
    for lacking, key in ((shard.label, 3), (shard.image, 5)):
        with pytest.raises(ShardError, match=rf"toy\.tar, sample train-0000000{key} lacks its image or its label"):
            lacking(key)
    assert shard.label(5) == b"5"
