"""One run at a time in a folder: who owns it, when it is free again, and who finds out that it has lost it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dist_prune.errors import UserError
from dist_prune.runtime.run_lock import RunLock, RunTakenOver

HOLD = """
import os, sys, time
from dist_prune.runtime.run_lock import RunLock
lock = RunLock.acquire(sys.argv[1])
child = os.fork() or time.sleep(60)
time.sleep(0.5)  # the child has to have started
print("holds", child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def holder(folder):
    """Another process that owns the folder ``run``; its child outlives it for a minute."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    word, child = process.stdout.readline().split()
    assert word == "holds"
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    os.kill(int(child), signal.SIGKILL)


@pytest.fixture
def elsewhere(folder):
    """Write the lock as a process of another machine would."""
    path = folder / "run.lock"

    def write(invocation: str = "theirs") -> None:
        path.write_text(json.dumps({"invocation": invocation, "host": "node7", "pid": 4711, "boot": "another"}))

    return write


def test_a_folder_in_which_another_process_trains_is_refused_by_all_its_names(holder, folder, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(folder)
    # Jobs of one machine may have a temporary folder each.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for path in (folder, tmp_path / "link"):
        with pytest.raises(UserError, match=f"process {holder.pid} of this machine is training in {path}: wait"):
            RunLock.acquire(path)


def test_a_stopped_process_still_owns_its_folder(holder, folder):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=f"process {holder.pid} of this machine"):
        RunLock.acquire(folder, silence=0.1)


def test_a_folder_is_free_as_soon_as_its_process_is_dead_whatever_its_children_do(holder, folder):
    holder.kill()
    holder.wait(timeout=30)
    RunLock.acquire(folder).release()


def test_a_released_folder_is_free_and_holds_no_lock_file(folder):
    with RunLock.acquire(folder) as lock:
        lock.check()
        assert (folder / "run.lock").exists()
    assert list(folder.iterdir()) == []
    RunLock.acquire(folder).release()


def test_a_folder_in_which_another_machine_trains_is_refused(folder, elsewhere):
    elsewhere()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(folder / "run.lock")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=f"process 4711 of host node7 is training in {folder}: wait"):
            RunLock.acquire(folder, silence=30)
    finally:
        ended.set()
        thread.join()


def test_a_process_gives_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr("dist_prune.runtime.run_lock.BEAT", 0.05)
    with RunLock.acquire(folder):
        before = (folder / "run.lock").stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while (folder / "run.lock").stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_lock_of_a_lost_machine_is_replaced(folder, elsewhere):
    elsewhere()
    with RunLock.acquire(folder, silence=0.5) as lock:
        lock.check()


def test_the_lock_of_a_lost_machine_is_replaced_even_if_its_file_system_lock_stays(holder, folder, elsewhere):
    elsewhere()
    holder.send_signal(signal.SIGSTOP)
    with RunLock.acquire(folder, silence=0.5) as lock:
        lock.check()
        with pytest.raises(UserError, match=f"process {os.getpid()} of this machine"):
            RunLock.acquire(folder)


def test_who_wakes_up_after_the_run_was_continued_elsewhere_stops_and_leaves_the_lock(folder, elsewhere):
    lock = RunLock.acquire(folder)
    elsewhere()
    of_another_rank = RunLock(folder, lock.invocation)
    for rank in (lock, of_another_rank):
        with pytest.raises(RunTakenOver, match=r"process 4711 of host node7 has continued the run in .*writes nothing"):
            rank.check()
    lock.release()
    assert json.loads((folder / "run.lock").read_text())["invocation"] == "theirs"


def test_who_wakes_up_after_the_run_was_finished_elsewhere_stops(folder):
    with RunLock.acquire(folder) as lock:
        (folder / "run.lock").unlink()
        with pytest.raises(RunTakenOver, match="another process has continued the run"):
            lock.check()


def test_a_link_in_place_of_the_lock_is_not_followed(folder, tmp_path):
    (tmp_path / "precious").write_text("kept")
    (folder / "run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"run\.lock"):
        RunLock.acquire(folder)
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}'])
def test_a_damaged_lock_of_a_dead_process_is_replaced(folder, content):
    (folder / "run.lock").write_text(content)
    RunLock.acquire(folder).release()
