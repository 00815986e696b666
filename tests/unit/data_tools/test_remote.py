"""A transfer keeps to its size, and what was given up does not come back."""

import threading
from pathlib import Path

import pytest

from data_tools import ShardError, open_store
from data_tools.cache import ShardCache
from data_tools.store import RemoteStore
from data_tools.transports import ShardSpec, UrlTransport

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
    monkeypatch.setattr("data_tools.transports.filesystem", lambda url: (source, url))
    return source


def test_a_source_that_sends_too_much_is_stopped_at_once(source, tmp_path):
    source.begin.set()
    with pytest.raises(ValueError, match="more than 25 bytes arrived, at most 25 are expected"):
        UrlTransport("x://", "").copy("y", tmp_path / "file", timeout=10, limit=25)
    assert source.pieces == 3


def test_a_transfer_that_was_given_up_ends_with_its_next_byte(source, tmp_path):
    with pytest.raises(TimeoutError, match=r"no byte arrived for 0\.1 s"):
        UrlTransport("x://", "").copy("y", tmp_path / "file", timeout=0.1, limit=2000)
    source.begin.set()
    assert source.ended.wait(10)
    assert source.pieces == 1


class GoesOn:
    """A transport whose first attempt is given up, but writes on in the middle of the second one."""

    def __init__(self) -> None:
        self.first = None

    def address(self, name: str) -> str:
        return name

    def copy(self, name: str, path: Path, timeout: float, limit: int) -> None:
        if self.first is None:
            self.first = open(path, "wb", buffering=0)  # noqa: SIM115
            raise TimeoutError
        with open(path, "wb", buffering=0) as file:
            file.write(DATA[:100])
            self.first.write(b"late")
            file.write(DATA[100:])


def test_an_attempt_that_was_given_up_does_not_write_into_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    storage = RemoteStore(ShardSpec("x", "x"), GoesOn(), ShardCache(tmp_path, 1000), timeout=1, retries=1)
    with storage.temporary_copy("shard.tar", len(DATA)) as path:
        assert path.read_bytes() == DATA
        assert [file.name for file in path.parent.iterdir()] == ["shard.tar"]


def test_a_command_that_writes_too_much_is_ended(digits, tmp_path):
    shard = open_store(digits).read_index().split("train").shards[0]
    storage = open_store(f"pipe:cat {digits}/{shard.name} /dev/zero", cache_dir=tmp_path)
    expected = rf"^cannot read pipe:.*{shard.name} /dev/zero: more than {shard.size} bytes arrived"
    with pytest.raises(ShardError, match=expected):
        storage.fetch(shard)
