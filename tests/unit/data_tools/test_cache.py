"""The cache of shards keeps to its limit, and each shard is copied once, whole or not at all."""

import hashlib
import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import ShardError, open_storage
from data_tools.cache import ShardCache


def bring(size: int, calls: list | None = None):
    def copy(path: Path) -> None:
        if calls is not None:
            calls.append(path)
        path.write_bytes(bytes(size))

    return copy


SHA = {size: hashlib.sha256(bytes(size)).hexdigest() for size in range(1, 40)}


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(st.integers(1, 12), max_size=25), limit=st.integers(12, 40))
def test_the_cache_keeps_to_its_limit_and_keeps_what_was_used_last(wanted, limit, tmp_path_factory):
    cache = ShardCache(tmp_path_factory.mktemp("cache"), limit)
    expected: list[int] = []  # least recently used first
    for size in wanted:
        calls = []
        path = cache.get(SHA[size], size, "it", bring(size, calls))
        assert path.read_bytes() == bytes(size)
        assert bool(calls) == (size not in expected)
        if size in expected:
            expected.remove(size)
        while sum(expected) + size > limit:
            expected.pop(0)
        expected.append(size)
        assert sorted(path.stat().st_size for path in cache.folder.glob("*.tar")) == sorted(expected)


def test_a_shard_larger_than_the_cache_is_refused(tmp_path):
    with pytest.raises(ShardError, match="s3://x has 30 bytes, the cache may hold 20: allow it more"):
        ShardCache(tmp_path, 20).get(SHA[30], 30, "s3://x", bring(30))


def test_an_evicted_shard_can_be_read_on_by_who_has_it_open(tmp_path):
    cache = ShardCache(tmp_path, 30)
    with open(cache.get(SHA[20], 20, "it", bring(20)), "rb") as file:
        cache.get(SHA[25], 25, "it", bring(25))
        assert not Path(file.name).exists()
        assert len(file.read()) == 20


def count_copies(cache: ShardCache, log: Path) -> None:
    def copy(path: Path) -> None:
        with open(log, "a") as file:
            file.write("x")
        time.sleep(0.2)
        path.write_bytes(bytes(20))

    assert cache.get(SHA[20], 20, "it", copy).read_bytes() == bytes(20)


def test_one_process_copies_a_shard_for_all_of_a_machine(tmp_path):
    context = multiprocessing.get_context("fork")
    arguments = (ShardCache(tmp_path / "cache", 100), tmp_path / "log")
    processes = [context.Process(target=count_copies, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "x"


def test_what_a_killed_process_left_half_copied_is_removed(tmp_path):
    def stall(path: Path) -> None:
        path.write_bytes(b"half")
        time.sleep(60)

    cache = ShardCache(tmp_path, 100)
    process = multiprocessing.get_context("fork").Process(target=cache.get, args=(SHA[20], 20, "it", stall))
    process.start()
    while not any(path.read_bytes() == b"half" for path in tmp_path.glob("*.partial")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert cache.get(SHA[20], 20, "it", bring(20)).read_bytes() == bytes(20)
    assert not list(tmp_path.glob("*.partial"))


def test_a_file_that_lost_its_end_is_copied_again(tmp_path):
    cache = ShardCache(tmp_path, 100)
    cache.get(SHA[20], 20, "it", bring(20)).write_bytes(b"")
    assert cache.get(SHA[20], 20, "it", bring(20)).read_bytes() == bytes(20)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot write to the cache .*file/below: Not a directory"):
        ShardCache(tmp_path / "file" / "below", 100).get(SHA[20], 20, "it", bring(20))


def test_a_default_cache_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(ShardError, match="dist_prune-12345 belongs to somebody else"):
        open_storage("memory://x")
