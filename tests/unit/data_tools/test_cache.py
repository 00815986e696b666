"""The cache of shards keeps to its limit, and each shard is copied once, whole or not at all."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import Shard, ShardError, open_store
from data_tools.cache import TRUSTED, ShardCache


def bring(size: int, calls: list | None = None):
    def copy(path: Path) -> None:
        if calls is not None:
            calls.append(path)
        path.write_bytes(bytes(size))

    return copy


SHA = {size: hashlib.sha256(bytes(size)).hexdigest() for size in range(1, 40)}
SHARDS = {size: Shard("toy.tar", 1, SHA[size], size) for size in SHA}


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(st.integers(1, 12), max_size=25), limit=st.integers(12, 40))
def test_the_cache_keeps_to_its_limit_and_keeps_what_was_used_last(wanted, limit, tmp_path_factory):
    cache = ShardCache(tmp_path_factory.mktemp("cache"), limit)
    expected: list[int] = []  # least recently used first
    for size in wanted:
        calls = []
        path = cache.get(SHARDS[size], "it", bring(size, calls))
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
        ShardCache(tmp_path, 20).get(SHARDS[30], "s3://x", bring(30))


def test_an_evicted_shard_can_be_read_on_by_who_has_it_open(tmp_path):
    cache = ShardCache(tmp_path, 30)
    with open(cache.get(SHARDS[20], "it", bring(20)), "rb") as file:
        cache.get(SHARDS[25], "it", bring(25))
        assert not Path(file.name).exists()
        assert len(file.read()) == 20


def count_copies(cache: ShardCache, log: Path) -> None:
    def copy(path: Path) -> None:
        with open(log, "a") as file:
            file.write("x")
        time.sleep(0.2)
        path.write_bytes(bytes(20))

    assert cache.get(SHARDS[20], "it", copy).read_bytes() == bytes(20)


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
    process = multiprocessing.get_context("fork").Process(target=cache.get, args=(SHARDS[20], "it", stall))
    process.start()
    while not any(path.read_bytes() == b"half" for path in tmp_path.glob("*.partial/*")):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert cache.get(SHARDS[20], "it", bring(20)).read_bytes() == bytes(20)
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_killed_process_left_of_another_shard_is_removed(tmp_path):
    (tmp_path / f"{'f' * 64}.partial").mkdir()
    assert not SHA[20].startswith("ff"), "they do not share a lock"
    ShardCache(tmp_path, 30).get(SHARDS[20], "it", bring(20))
    assert not list(tmp_path.glob("*.partial"))


def test_a_copy_of_another_process_that_is_alive_is_not_removed(tmp_path):
    other = tmp_path / f"{'f' * 64}.partial"
    other.mkdir()
    with FileLock(tmp_path / ".ff.lock"):
        ShardCache(tmp_path, 30).get(SHARDS[20], "it", bring(20))
    assert other.exists()


def copy_slowly(cache: ShardCache, size: int) -> None:
    def copy(path: Path) -> None:
        time.sleep(0.1)
        path.write_bytes(bytes(size))

    cache.get(SHARDS[size], "it", copy)


def size_if_there(path: Path) -> int:
    """Return the size of a file that another process may evict at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_several_processes_that_copy_at_once_keep_the_finished_shards_within_the_limit(tmp_path):
    cache = ShardCache(tmp_path / "cache", 45)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=copy_slowly, args=(cache, size)) for size in (20, 21, 22, 23, 24)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert sum(map(size_if_there, cache.folder.glob("*.tar"))) <= 45
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 20 <= sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= 45


def test_room_is_made_before_the_copy(tmp_path):
    cache = ShardCache(tmp_path, 30)
    cache.get(SHARDS[20], "it", bring(20))
    kept: list[Path] = []

    def copy(path: Path) -> None:
        kept.extend(tmp_path.glob("*.tar"))
        path.write_bytes(bytes(25))

    cache.get(SHARDS[25], "it", copy)
    assert kept == []


def test_files_of_others_in_the_folder_are_neither_counted_nor_touched(tmp_path):
    others = ["thesis.tar", f"{'a' * 63}.tar", f"{'A' * 64}.tar", "movie.partial", f"x{SHA[20]}.partial"]
    for name in others:
        (tmp_path / name).write_bytes(bytes(1000))
    cache = ShardCache(tmp_path, 30)
    for size in (20, 25):
        cache.get(SHARDS[size], "it", bring(size))
    assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == {*others, f"{SHA[25]}.tar"}
    assert all((tmp_path / name).read_bytes() == bytes(1000) for name in others)


def test_the_bytes_of_a_shard_reach_the_disk_before_its_name_does(tmp_path, monkeypatch):
    synced = {}
    final = tmp_path / f"{SHA[20]}.tar"
    monkeypatch.setattr(os, "fsync", lambda file: synced.update({os.fstat(file).st_ino: final.exists()}))
    ShardCache(tmp_path, 100).get(SHARDS[20], "it", bring(20))
    assert synced == {final.stat().st_ino: False}


def test_a_shard_that_changed_while_nobody_used_it_is_copied_again(tmp_path):
    cache, calls = ShardCache(tmp_path, 100), []
    path = cache.get(SHARDS[20], "it", bring(20, calls))
    long_ago = time.time() - TRUSTED - 1
    os.utime(path, (long_ago, long_ago))
    cache.get(SHARDS[20], "it", bring(20, calls))
    assert len(calls) == 1, "it is what it was"
    path.write_bytes(b"x" * 20)
    os.utime(path, (long_ago, long_ago))
    assert cache.get(SHARDS[20], "it", bring(20, calls)).read_bytes() == bytes(20)


def test_a_file_that_lost_its_end_is_copied_again(tmp_path):
    cache = ShardCache(tmp_path, 100)
    cache.get(SHARDS[20], "it", bring(20)).write_bytes(b"")
    assert cache.get(SHARDS[20], "it", bring(20)).read_bytes() == bytes(20)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot write to the cache .*file/below: Not a directory"):
        ShardCache(tmp_path / "file" / "below", 100).get(SHARDS[20], "it", bring(20))


def test_a_default_cache_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(ShardError, match="dist_prune-12345 belongs to somebody else"):
        open_store("memory://x")


def test_a_default_cache_that_is_a_link_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"dist_prune-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"dist_prune-\d+ is a link: remove it"):
        open_store("memory://x")
