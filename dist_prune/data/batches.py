"""The batches of one rank by number, read and augmented by worker processes, which end with their reader.

Unreadable samples end the run or are skipped; the loss of a worker is reported in one line.
"""

import atexit
import errno
import os
import signal
import sys
import time
import traceback
import weakref
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from tqdm import tqdm

from data_tools import ShardError
from data_tools.errors import LocalDiskError
from data_tools.images import ImageError
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.decoded import UNREADABLE, DecodedSplit
from dist_prune.data.plan import Part, Plan
from dist_prune.data.reader import Reader
from dist_prune.data.transforms import ImageTransform
from dist_prune.errors import RunError, one_line

PREFETCHED_ITEMS = 4  # per worker
_SECONDS_TO_DIE = 2.0
_NO_SHARED_MEMORY = 28  # exit code of a worker
_HINTS = {
    signal.SIGKILL: ", perhaps for lack of memory: fewer workers need less",
    signal.SIGBUS: ": a shard was truncated while it was read, or /dev/shm is full",
}
_Item = TypeVar("_Item")


class EndOfStream(Exception):
    """There are no more samples, where nobody knew how many there are."""


class ReadingFailed(RunError):
    """Data could not be read although the shards are sound: a worker was killed, or the program has a fault."""


class WorkerBatch(NamedTuple):
    """A batch that a worker has read.

    pixels: (views * B, H, W, C), uint8, view after view; labels: (B,), int64; rng: of the first view;
    skipped: a message for each sample that was skipped.
    """

    pixels: Tensor
    labels: Tensor
    rng: BatchRng
    skipped: list[str]


@dataclass(frozen=True)
class Batches(Dataset[WorkerBatch | ShardError | ReadingFailed]):
    """The batches of a plan; an error takes the place of its batch: raised, it would come wrapped in a traceback.

    ``skip`` skips samples that cannot be read; ``views``: of each image, in a batch; ``decoded``: what ``transform``
    makes of the images, as far as they can be read.
    """

    plan: Plan
    reader: Reader
    transform: ImageTransform
    seed: int
    epoch: int
    skip: bool
    views: int = 1
    decoded: DecodedSplit | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> WorkerBatch | ShardError | ReadingFailed:
        try:
            return self._batch(self.plan.part(number))
        except ShardError as error:
            return ShardError(str(error))
        except Exception as error:  # an error that escaped here would leave the other ranks waiting
            return ReadingFailed(f"reading failed: {described(error)}")

    def _batch(self, part: Part) -> WorkerBatch:
        rngs = [
            BatchRng(self.seed, self.epoch, part.step, part.first, len(part.rows), view) for view in range(self.views)
        ]
        pixels, labels, skipped = self._read(part, rngs)
        views = [self.transform.augment(view, rng) for view, rng in zip(pixels, rngs, strict=True)]
        # After the augmentation, whose random numbers go by the row.
        if skipped:
            views, labels = [view[labels >= 0] for view in views], labels[labels >= 0]
        whole = views[0] if self.views == 1 else np.concatenate(views)
        return WorkerBatch(torch.from_numpy(whole), torch.from_numpy(labels), rngs[0], skipped)

    def _read(self, part: Part, rngs: Sequence[BatchRng]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Return pixels (views, B, H, W, C), labels (B,), -1 where a sample is skipped, and the reasons."""
        transform = self.transform
        skipped: list[str] = []
        if self.decoded is None:
            pixels = np.zeros((len(rngs), len(part.rows), *transform.size, transform.channels), np.uint8)
            labels = np.full(len(part.rows), UNREADABLE)
        else:
            images, labels = self.decoded.take(part.shards, part.rows)
            pixels = images[None] if len(rngs) == 1 else np.repeat(images[None], len(rngs), axis=0)
        crops = np.stack([transform.crops(rng) for rng in rngs])
        for row in np.flatnonzero(labels == UNREADABLE).tolist():
            try:
                pixels[:, row], labels[row] = self._sample(int(part.shards[row]), int(part.rows[row]), crops[:, row])
            except EndOfStream:
                return pixels[:, :row], labels[:row], skipped
            except ShardError as error:
                # A full disk of this machine is no fault of a sample.
                if not self.skip or isinstance(error, LocalDiskError):
                    raise
                skipped.append(str(error))
        return pixels, labels, skipped

    def _sample(self, shard: int, number: int, crops: np.ndarray) -> tuple[list[np.ndarray], int]:
        image, label = self.reader.sample(shard, number)
        try:
            return [self.transform.prepare(image, crop) for crop in crops], label
        except ImageError as error:
            raise ShardError(f"{self.reader.place(shard, number)}: {error}") from error


def described(error: Exception) -> str:
    """Return type, message and place of an unexpected error in one line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} (in {last.name}, {Path(last.filename).name}, line {last.lineno})"


class Skipped:
    """The samples that this rank skipped."""

    def __init__(self) -> None:
        self._count = 0
        self._reported: set[str] = set()

    def add(self, messages: Sequence[str]) -> None:
        """Count one sample for each message, and print on standard error those not reported before."""
        self._count += len(messages)
        for message in messages:
            if message not in self._reported:
                self._reported.add(message)
                tqdm.write(one_line(f"skipped: {message}"), file=sys.stderr)

    def take(self) -> int:
        """Return the number of samples since the last call."""
        count, self._count = self._count, 0
        return count


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
    # Queues need room there too, in this process.
    if ended[:1] == [_NO_SHARED_MEMORY] or getattr(error, "errno", None) == errno.ENOSPC:
        room = "make room there (containers: --shm-size), or set workers=0"
        return f"/dev/shm is full or too small for the batches that workers read: {room}"
    if not ended:
        return f"reading failed: {traceback.format_exception_only(error)[-1].strip().splitlines()[-1]}"
    if ended[0] > 0:
        return f"a worker that reads data has ended with exit code {ended[0]}"
    number = signal.Signals(-ended[0])
    return f"a worker that reads data was ended by {number.name}{_HINTS.get(number, '')}"


class _Worker(ForkProcess):
    """A process that ignores SIGTERM (see ``_start_worker``); terminate() kills it."""

    terminate = ForkProcess.kill


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
    # torch names no folder, and every worker meets the same: the rank reports it.
    if "shared memory" in str(error):
        os._exit(_NO_SHARED_MEMORY)
    print(f"a worker cannot pass on what it read: {type(error).__name__}: {error}", file=sys.stderr)
    os._exit(1)


# A rank that ends in the middle of an epoch must end its workers first: at exit, Python waits for them
# after a SIGTERM, which they ignore. Registered after torch's own exit hook, this one runs before it.
_unfinished: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    for arriving in list(_unfinished):
        arriving.close()
