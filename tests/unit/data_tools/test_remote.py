"""A transfer keeps to its size, and what was given up does not come back."""

import errno
import threading
from pathlib import Path

import pytest

from data_tools import ShardError, open_store
from data_tools.cache import ShardCache
from data_tools.errors import LocalDiskError
from data_tools.remote import copy_file
from data_tools.store import RemoteStore, ShardSpec

DATA = bytes(range(200))


class Source:
    """A file system of one endless file, which it gives by pieces of 10 bytes after ``begin``."""

    def __init__(self) -> None:
        self.begin, self.ended, self.pieces = threading.Event(), threading.Event(), 0

    def get_file(self, remote: str, path: str, callback) -> None:
        try:
            self.begin.wait(10)
            while self.pieces < 100:
                self.pieces += 1
                callback.relative_update(10)
        finally:
            self.ended.set()


@pytest.fixture
def source(monkeypatch) -> Source:
    source = Source()
    monkeypatch.setattr("data_tools.remote.filesystem", lambda url: (source, url))
    return source


def test_a_source_that_sends_too_much_is_stopped_at_once(source, tmp_path):
    source.begin.set()
    with pytest.raises(ValueError, match="more than 25 bytes arrived, at most 25 are expected"):
        copy_file("x://y", tmp_path / "file", timeout=10, limit=25)
    assert source.pieces == 3


def test_a_transfer_that_was_given_up_ends_with_its_next_byte(source, tmp_path):
    with pytest.raises(TimeoutError, match=r"no byte arrived for 0\.1 s"):
        copy_file("x://y", tmp_path / "file", timeout=0.1, limit=2000)
    source.begin.set()
    assert source.ended.wait(10)
    assert source.pieces == 1


def test_an_attempt_that_was_given_up_does_not_write_into_the_next_one(tmp_path, monkeypatch):
    abandoned = []

    def copy(address: str, path: Path, timeout: float, limit: int) -> None:
        if not abandoned:
            abandoned.append(open(path, "wb", buffering=0))  # noqa: SIM115
            raise TimeoutError
        with open(path, "wb", buffering=0) as file:
            file.write(DATA[:100])
            abandoned[0].write(b"late")  # in the middle of the second attempt
            file.write(DATA[100:])

    monkeypatch.setattr("data_tools.store.copy_file", copy)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    storage = RemoteStore(ShardSpec("x", "x/"), ShardCache(tmp_path, 1000), timeout=1, retries=1)
    with storage.temporary_copy("shard.tar", len(DATA)) as path:
        assert path.read_bytes() == DATA
        assert [file.name for file in path.parent.iterdir()] == ["shard.tar"]


def test_a_command_that_writes_too_much_is_ended(digits, tmp_path):
    shard = open_store(digits).read_index().split("train").shards[0]
    storage = open_store(f"pipe:cat {digits}/{shard.name} /dev/zero", cache_dir=tmp_path)
    expected = rf"^cannot read pipe:.*{shard.name} /dev/zero: more than {shard.size} bytes arrived"
    with pytest.raises(ShardError, match=expected):
        storage.fetch(shard)


def test_a_full_disk_is_named_and_is_no_fault_of_the_server(tmp_path, monkeypatch):
    attempts = []

    def copy(address, path, timeout, limit):
        attempts.append(address)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("data_tools.store.copy_file", copy)
    storage = RemoteStore(ShardSpec("x", "x/"), ShardCache(tmp_path, 1000), timeout=1, retries=3)
    told = r"^cannot write a copy to .*: No space left on device; make room there, or choose another cache\.folder$"
    with pytest.raises(LocalDiskError, match=told), storage.temporary_copy("shard.tar", len(DATA)):
        pass
    assert len(attempts) == 1, "waiting makes no room"
