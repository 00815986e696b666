"""The same work on many items in several processes, which share what the first one has in memory."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from data_tools.errors import ShardError

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_AHEAD = 2  # per process: enough to keep all busy, and finished work does not pile up


def each(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """Yield ``work(item)`` for every item, in the order in which they finish.

    ``work`` reaches the processes by forking, so it may hold large data and open files; items and
    results are pickled.

    Raises:
        ShardError: a process was killed; and errors that ``work`` raises.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(work, items)
        return
    waiting = iter(items)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, initargs=(work, os.getpid()))
    try:
        running: set[Future[Result]] = set()
        while True:
            for item in islice(waiting, processes * ITEMS_AHEAD - len(running)):
                running.add(pool.submit(_work_on, item))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ShardError("a process was killed, perhaps for lack of memory: try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any]  # of this process, if it is one of the pool


def _begin(work: Callable[[Any], Any], parent: int) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a stack trace
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process soon after its parent, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _work_on(item: Any) -> Any:
    return _work(item)
