"""Reading processes end with whoever reads, and whatever happens to them ends in one line, within seconds."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
import torch
from made_shards import make, numbered
from torch.utils.data import Dataset

from dist_prune.data import ReadingFailed
from dist_prune.data.batches import _start_worker, read

pytestmark = pytest.mark.timeout(180)


class Items(Dataset):
    """(number, process id); ``at`` number 3 something happens."""

    def __init__(self, at_3=lambda: None) -> None:
        self.at_3 = at_3

    def __getitem__(self, number):
        extra = self.at_3() if number == 3 else None
        return (torch.tensor([number, os.getpid()]), extra)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep() -> None:
    time.sleep(1000)


def leave() -> None:
    sys.exit(7)


def boom() -> None:
    raise OSError(5, "Input/output error")


def full() -> None:
    raise OSError(28, "No space left on device")


def unsendable():
    return threading.Lock()


class NoSharedMemory:
    def __reduce__(self):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
        )


def children() -> list[str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return file.read().split()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_from_as_many_processes_and_none_is_left(workers):
    before = children()
    found = [item.tolist() for item, _ in read(Items(), range(4, 24), workers, False)]
    assert [number for number, _ in found] == list(range(4, 24))
    pids = {pid for _, pid in found}
    assert pids == {os.getpid()} if workers == 0 else len(pids - {os.getpid()}) == workers
    assert children() == before


@pytest.mark.parametrize(
    ("event", "workers", "expected"),
    [
        (kill, 2, "a worker that reads data was ended by SIGKILL, perhaps for lack of memory"),
        (leave, 2, "a worker that reads data has ended with exit code 7"),
        (unsendable, 2, "a worker that reads data has ended with exit code 1"),
        (NoSharedMemory, 2, "/dev/shm is full or too small for the batches that workers read: make room there"),
        (full, 0, "/dev/shm is full or too small for the batches that workers read: make room there"),
        (boom, 2, "reading failed: OSError: [Errno 5] Input/output error"),
        (boom, 0, "reading failed: OSError: [Errno 5] Input/output error"),
    ],
)
def test_what_happens_to_a_worker_is_told_in_one_line_and_the_others_end(event, workers, expected):
    before, start = children(), time.monotonic()
    with pytest.raises(ReadingFailed) as caught:
        list(read(Items(event), range(100), workers, False))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert children() == before
    assert time.monotonic() - start < 60


def test_a_worker_that_hangs_is_killed_when_reading_ends():
    before, start = children(), time.monotonic()
    with closing(read(Items(sleep), range(100), 2, False)) as items:
        assert next(items)[0][0] == 0
    assert children() == before
    assert time.monotonic() - start < 60


def test_a_worker_that_dies_interrupts_nothing_but_reading():
    """Raised anywhere else, it would leave other ranks waiting."""
    before = signal.getsignal(signal.SIGCHLD)
    items = read(Items(), range(1000), 1, False)
    (_, pid), _ = next(items)
    assert signal.getsignal(signal.SIGCHLD) is before
    os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(ReadingFailed, match="SIGKILL"):
        list(items)


def test_workers_ignore_the_signals_that_a_launcher_sends_to_all(monkeypatch):
    handled = {}
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: handled.update(threads=count))
    monkeypatch.setattr("dist_prune.data.batches.Queue", type("Queue", (), {}))
    _start_worker(0)
    ignored = dict.fromkeys((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP), signal.SIG_IGN)
    assert handled == {**ignored, "threads": 1}


# Python starts once; each ending happens in a fork of it, which then ends as any interpreter does.
SCRIPT = """
import multiprocessing, os, sys
from dist_prune.config import CacheConfig
from dist_prune.data import open_data
from dist_prune.data.reader import Reader
def boom(*_): raise OSError(5, "Input/output error")
forks = []
for number, ending in enumerate(sys.argv[2:]):
    forks.append(os.fork())
    if forks[-1] == 0:
        os.dup2(os.open(f"{number}.err", os.O_WRONLY | os.O_CREAT), 2)
        break
else:
    print(*(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) for fork in forks), flush=True)
    os._exit(0)
images = open_data(sys.argv[1], workers=2, cache=CacheConfig(decoded_gigabytes=0))
batches = images.train_batches(0, micro_batch=4, global_batch=4, rank=0, world_size=1)
exec(ending)
"""
KILLED = "ReadingFailed: a worker that reads data was ended by SIGKILL, perhaps for lack of memory"
ENDINGS = [
    ("next(batches); del batches", 0, ""),
    ("next(batches); sys.exit(3)", 3, ""),
    ("next(batches); raise RuntimeError('boom')", 1, "RuntimeError: boom"),
    ("Reader.sample = boom; list(batches)", 1, "ReadingFailed: reading failed: OSError: [Errno 5]"),
    ("next(batches); os.kill(multiprocessing.active_children()[0].pid, 9); list(batches)", 1, KILLED),
]


def test_a_process_that_reads_ends_however_reading_ends(tmp_path):
    make(tmp_path / "data", {"train": (*numbered(400), (200, 200))})
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "data"), *(ending for ending, _, _ in ENDINGS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, cwd=tmp_path)
    assert done.stdout.split() == [str(code) for _, code, _ in ENDINGS], done.stderr
    for number, (ending, _, last) in enumerate(ENDINGS):
        lines = (tmp_path / f"{number}.err").read_text().strip().splitlines()
        assert last in lines[-1] if last else not lines, ending
