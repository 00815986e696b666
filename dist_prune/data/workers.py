"""Items read by worker processes, which end with their reader; the loss of one is reported in one line."""

import atexit
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Generator
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from typing import Any, NoReturn, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from dist_prune.errors import RunError

PREFETCHED_ITEMS = 4  # per worker
_SECONDS_TO_DIE = 2.0
_HINTS = {
    signal.SIGKILL: ", perhaps for lack of memory: fewer workers need less",
    signal.SIGBUS: ": a shard was truncated while it was read, or /dev/shm is full",
}
_Item = TypeVar("_Item")


class ReadingFailed(RunError):
    """Data could not be read although the shards are sound: a worker was killed, or the program has a fault."""


def read(items: Dataset[_Item], numbers: range, workers: int, pin_memory: bool) -> Generator[_Item, None, None]:
    """Iterate over ``items[number]`` for all numbers, in their order; ``workers`` processes take turns.

    With 0 workers this process reads. Workers end when the iterator is exhausted, closed or dropped,
    and when Python exits. ``pin_memory`` is for tensors in items that go to a GPU.

    Raises:
        ReadingFailed: a worker was killed, or reading raised what it should not.
    """
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCHED_ITEMS if workers else None,
        multiprocessing_context=_Fork() if workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        # Its own generator: the loader draws a number for its workers, by default from the global one.
        generator=torch.Generator(),
    )
    # The loader's handler of SIGCHLD would raise wherever this process happens to be when a worker dies, for example
    # between two collectives, while other ranks wait. The loader also finds out when it is asked for data, within
    # seconds, so it is made to believe that the handler is there.
    signal_handling._SIGCHLD_handler_set = True
    arriving = _arriving(loader)
    _unfinished.add(arriving)
    return arriving


def _arriving(loader: DataLoader[_Item]) -> Generator[_Item, None, None]:
    items: Any = None
    try:
        items = iter(loader)
        yield from items
    except Exception as error:
        raise ReadingFailed(_reason(error, getattr(items, "_workers", ()))) from error
    finally:  # an error would keep the loader's iterator alive, and its workers
        if hasattr(items, "_shutdown_workers"):
            items._shutdown_workers()


def _reason(error: Exception, workers: Any) -> str:
    # Connections and shared tensors go a moment before their process does.
    if isinstance(error, (OSError, EOFError)):
        deadline = time.monotonic() + _SECONDS_TO_DIE
        while time.monotonic() < deadline and not any(worker.exitcode for worker in workers):
            time.sleep(0.01)
    ended = [worker.exitcode for worker in workers if worker.exitcode]
    if not ended:
        return f"reading failed: {traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}"
    if ended[0] > 0:
        return f"a worker that reads data has ended with exit code {ended[0]}"
    number = signal.Signals(-ended[0])
    return f"a worker that reads data was ended by {number.name}{_HINTS.get(number, '')}"


class _Worker(ForkProcess):
    """A process that ignores SIGTERM (see ``_start_worker``); terminate() kills it."""

    def terminate(self) -> None:
        self.kill()


class _Fork(ForkContext):
    Process = _Worker


def _start_worker(number: int) -> None:
    """Ignore signals: a launcher that signals every process would end workers while their rank still reads."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: Exception, item: object) -> NoReturn:
    """End this worker: by default the item would be dropped, and the rank would wait for it forever."""
    print(f"a worker cannot pass on what it read: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(1)


# A rank that ends in the middle of an epoch must end its workers first: at exit, Python waits for them
# after a SIGTERM, which they ignore. Registered after torch's own exit hook, this one runs before it.
_unfinished: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for arriving in list(_unfinished):
        arriving.close()
