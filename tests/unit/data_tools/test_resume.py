"""An interrupted writer leaves nothing half-written, and its successor ends with the same bytes."""

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from shard_helpers import everything, write_image

from data_tools import ShardError, make_shards
from data_tools.sources import SOURCES
from data_tools.sources.base import ArraySplit
from data_tools.writers import ShardSet

REQUEST = {"samples_per_shard": 50, "seed": 4}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    make_shards("digits", None, folder, **REQUEST)
    return everything(folder)


def write_slowly(folder, workers):
    write = ShardSet.write

    def slowly(self, tar, plan):
        time.sleep(0.05)
        return write(self, tar, plan)

    ShardSet.write = slowly  # in a process of its own
    make_shards("digits", None, folder, workers=workers, **REQUEST)


def is_running(process: str) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("finished", [1, 7])
def test_a_killed_writer_is_continued_to_the_same_bytes(tmp_path, uninterrupted, workers, finished):
    writer = multiprocessing.get_context("fork").Process(target=write_slowly, args=(tmp_path, workers))
    writer.start()
    while len(list(tmp_path.glob("*.tar"))) < finished:
        assert writer.is_alive(), "it ended before it could be killed"
        time.sleep(0.01)
    helpers = Path(f"/proc/{writer.pid}/task/{writer.pid}/children").read_text().split()
    assert len(helpers) == (workers if workers > 1 else 0)
    writer.kill()
    writer.join()
    deadline = time.monotonic() + 10
    while any(is_running(helper) for helper in helpers):
        assert time.monotonic() < deadline, "its processes outlive it"
        time.sleep(0.01)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert "_info.json" not in left
    whole = {name: data for name, data in left.items() if name.endswith(".tar")}
    assert len(whole) >= finished
    assert whole.items() <= uninterrupted.items()
    make_shards("digits", None, tmp_path, **REQUEST)
    assert everything(tmp_path) == uninterrupted


def test_a_crash_leaves_no_file_under_a_final_name(tmp_path, monkeypatch, uninterrupted):
    calls = []

    def crash(self, number, read=ArraySplit.read):
        calls.append(number)
        if len(calls) == 75:  # in the middle of the second shard
            raise RuntimeError("crash")
        return read(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(ArraySplit, "read", crash)
        with pytest.raises(RuntimeError, match="crash"):
            make_shards("digits", None, tmp_path, **REQUEST)
    assert sorted(everything(tmp_path)) == ["digits-train-000000.tar", "digits-train-000000.tar.json"]
    make_shards("digits", None, tmp_path, **REQUEST)
    assert everything(tmp_path) == uninterrupted


def test_finished_shards_are_not_written_again(tmp_path, monkeypatch, interrupted, uninterrupted):
    interrupted(5, tmp_path, **REQUEST)
    written = []
    write = ShardSet.write

    def note(self, tar, plan):
        written.append(plan.name)
        return write(self, tar, plan)

    monkeypatch.setattr(ShardSet, "write", note)
    make_shards("digits", None, tmp_path, **REQUEST)
    tars = [name for name in uninterrupted if name.endswith(".tar")]
    assert sorted(written) == sorted(set(tars) - {f"digits-train-{number:06d}.tar" for number in range(5)})
    assert everything(tmp_path) == uninterrupted


@pytest.mark.parametrize("damage", ["removed", "shortened"])
def test_finished_shards_that_did_not_stay_whole_are_written_again(tmp_path, interrupted, uninterrupted, damage):
    interrupted(5, tmp_path, **REQUEST)
    victim = tmp_path / "digits-train-000002.tar"
    if damage == "removed":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-512])
    make_shards("digits", None, tmp_path, **REQUEST)
    assert everything(tmp_path) == uninterrupted


def test_a_shard_whose_maker_was_killed_before_it_was_in_its_place_is_written_again(
    tmp_path, interrupted, uninterrupted
):
    interrupted(5, tmp_path, **REQUEST)
    (tmp_path / "digits-train-000004.tar").unlink()  # the sidecar comes first
    assert interrupted(5, tmp_path, **REQUEST)[0] == "digits-train-000004.tar"
    make_shards("digits", None, tmp_path, **REQUEST)
    assert everything(tmp_path) == uninterrupted


def test_an_unfinished_set_of_other_shards_is_refused(tmp_path, interrupted):
    interrupted(2, tmp_path, **REQUEST)
    before = everything(tmp_path)
    with pytest.raises(ShardError, match="already holds an unfinished set of other shards"):
        make_shards("digits", None, tmp_path, **(REQUEST | {"seed": 5}))
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", ["no sidecar", '{"fingerprint": "x"}'])
def test_a_damaged_sidecar_is_named(tmp_path, content):
    (tmp_path / "digits-train-000001.tar.json").write_text(content)
    with pytest.raises(ShardError, match=r"cannot read .*digits-train-000001\.tar\.json.*delete"):
        make_shards("digits", None, tmp_path, **REQUEST)


def test_an_error_in_one_of_several_processes_is_one_line(tmp_path):
    for number in range(9):
        write_image(tmp_path / "raw" / "train" / "a" / f"{number}.jpg", number)
    write_image(tmp_path / "raw" / "test" / "a" / "0.jpg", 1)
    (tmp_path / "raw" / "train" / "a" / "7.jpg").write_bytes(b"no image")
    with pytest.raises(ShardError, match=r"a/7\.jpg: corrupt image") as caught:
        make_shards("imagefolder", tmp_path / "raw", tmp_path / "out", workers=3, samples_per_shard=2)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_process_is_one_line(tmp_path, monkeypatch):
    def die(self, tar, plan):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ShardSet, "write", die)
    with pytest.raises(ShardError, match="a process was killed, perhaps for lack of memory"):
        make_shards("digits", None, tmp_path, workers=2, **REQUEST)


def test_two_makers_at_once_end_with_the_bytes_of_one(tmp_path, uninterrupted):
    context = multiprocessing.get_context("fork")
    makers = [context.Process(target=write_slowly, args=(tmp_path, 1)) for _ in range(2)]
    for maker in makers:
        maker.start()
        time.sleep(0.1)  # the second one finds shards of the first
    for maker in makers:
        maker.join()
        assert maker.exitcode == 0
    assert everything(tmp_path) == uninterrupted


def test_a_maker_that_comes_too_late_takes_what_the_other_one_made(tmp_path, monkeypatch, uninterrupted):
    digits = SOURCES["digits"]

    def overtaken(folder, options):
        with monkeypatch.context() as patch:
            patch.setitem(SOURCES, "digits", digits)
            make_shards("digits", None, tmp_path, **REQUEST)
        return digits.read(folder, options)

    monkeypatch.setitem(SOURCES, "digits", dataclasses.replace(digits, read=overtaken))
    assert make_shards("digits", None, tmp_path, **REQUEST).root == tmp_path
    assert everything(tmp_path) == uninterrupted


def test_what_the_killed_one_of_two_makers_left_is_removed_by_the_next_one(tmp_path, uninterrupted):
    make_shards("digits", None, tmp_path, **REQUEST)
    (tmp_path / ".making-0a1b2c3d").mkdir()
    (tmp_path / ".making-0a1b2c3d" / "digits-train-000003.tar").write_bytes(b"half")
    (tmp_path / "digits-train-000003.tar.json").write_bytes(b"{}")
    make_shards("digits", None, tmp_path, **REQUEST)
    assert everything(tmp_path) == uninterrupted
