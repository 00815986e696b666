"""Stream order: samples as the webdataset library reads them, from shards that nobody has indexed or can keep.

In training an epoch has a length that the user states. All shards are in an order drawn from (seed, epoch), and the
reading processes of all ranks take turns in choosing one; each passes its samples through a shuffle buffer and goes on
with other shards, in a new order, until the epoch is over. In evaluation every shard is read once.
"""

import itertools
import random
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import torch.utils.data
from webdataset import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_tools import ShardError, ShardIndex, ShardStore, tar
from data_tools.labels import Labels
from dist_prune.data import plan
from dist_prune.data.batch_rng import permutation
from dist_prune.data.batches import EndOfStream
from dist_prune.data.loader import ImageData, Samples

# What a damaged tar, or the library on meeting one, raises.
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, AssertionError, zlib.error)


@dataclass(frozen=True)
class StreamData(ImageData):
    """A data set in shards that are read in stream order; ``index`` says what images, labels and classes are like."""

    # The names of all shards of each split.
    names: dict[str, Sequence[str]] = field(default_factory=dict)
    # Training samples of an epoch.
    samples: int = 0
    # Samples in the shuffle buffer of a reading process.
    shuffle: int = 1000

    def identity(self) -> dict[str, Any]:
        """Return the identity of these data: what they look like, and the length of an epoch."""
        return {"fingerprint": self.index.fingerprint, "shard_lengths": {"train": [self.samples]}}

    def num_samples(self, split: str) -> int | None:
        """Return the number of samples of an epoch of training; None for other splits, which nobody has counted."""
        self._names(split)
        return self.samples if split == "train" else None

    def steps_per_epoch(self, global_batch: int) -> int:
        """Return the number of optimizer steps of an epoch; PlanError if it is less than a batch."""
        return plan.steps_per_epoch(self.samples, global_batch)

    def samples_of_step(self, epoch: int, step: int, global_batch: int) -> dict[str, list[int]]:
        """Return nothing: samples of a stream have no numbers."""
        return {}

    def _names(self, split: str) -> Sequence[str]:
        # Its error names the splits that there are.
        self._split(split).index.split(split)
        return self.names[split]

    def _order(self, epoch: int, global_batch: int) -> plan.AnyOrder:
        return plan.StreamOrder(self.samples, global_batch)

    def _train_samples(
        self, chosen: plan.TrainPlan, epoch: int, rank: int, world_size: int, skip_steps: int
    ) -> Samples:
        key = self.seed, epoch, skip_steps
        return Samples(StreamReader(*self._source("train"), rank, world_size, key=key, shuffle=self.shuffle))

    def _evaluation(
        self, split: str, batch_size: int, rank: int, world_size: int, limit: int | None
    ) -> tuple[plan.Plan, Samples]:
        reader = StreamReader(*self._source(split), rank, world_size, limit=limit)
        return plan.StreamEvalPlan(batch_size), Samples(reader)

    def _source(self, split: str) -> tuple[ShardStore, ShardIndex, Sequence[str]]:
        source = self._split(split)
        return source.store, source.index, self._names(split)


class StreamReader:
    """The next samples for one reading process of a rank; in place of ``Reader``, whose samples have numbers.

    key: of the order of a training epoch; None reads every shard once. limit: of samples, over all ranks together.
    """

    def __init__(
        self,
        store: ShardStore,
        index: ShardIndex,
        names: Sequence[str],
        rank: int,
        world_size: int,
        key: tuple[int, ...] | None = None,
        shuffle: int = 1,
        limit: int | None = None,
    ) -> None:
        self._store, self._names, self._root = store, names, index.root
        self._rule, self._labels = index.label, Labels(index.label, index.class_names)
        self._rank, self._world_size, self._key = rank, world_size, key
        self._shuffle, self._limit = shuffle, limit
        self._place = ""
        self._samples: Iterator[dict[str, Any]] | None = None

    def sample(self, shard: int, number: int) -> tuple[bytes, int]:
        """Return the next encoded image and its label, whatever the number.

        Raises:
            ShardError: a shard or sample is damaged; the next call goes on behind it.
            EndOfStream: every sample has been read.
        """
        # Only now, in the process that reads.
        if self._samples is None:
            self._samples = self._limited()
        found = next(self._samples, None)
        if found is None:
            raise EndOfStream
        if "error" in found:
            raise ShardError(found["error"])
        self._place = f"{self._root}/{found['__url__']}, sample {found['__key__']}"
        images = tar.images_of({name: data for name, data in found.items() if not name.startswith("__")})
        if len(images) != 1 or self._rule.member not in found:
            raise ShardError(f"{self._place} lacks its image or its label, or has two images")
        if len(images[0]) > tar.LARGEST_IMAGE:
            raise ShardError(f"{self._place}: an image of {len(images[0])} bytes, {tar.LARGEST_IMAGE} are allowed")
        try:
            return images[0], self._labels.number(found[self._rule.member])
        except ValueError as error:
            raise ShardError(f"{self._place}: {error}") from error

    def place(self, shard: int, number: int) -> str:
        """Return shard and key of the sample that was read last."""
        return self._place

    def _limited(self) -> Iterator[dict[str, Any]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        process, processes = self._rank * workers + worker, self._world_size * workers
        if self._key is None:
            share = None
            if self._limit is not None:
                share = (process + 1) * self._limit // processes - process * self._limit // processes
            return itertools.islice(self._read(self._names[process::processes]), share)
        key = " ".join(map(str, (*self._key, process)))
        # The library's own buffer. It gives out nothing before it is full, or a batch would be of one shard.
        mixed = shuffle(self._shuffle, initial=self._shuffle, rng=random.Random(key))
        return mixed(self._read(self._turns(process, processes)))

    def _turns(self, process: int, processes: int) -> Iterator[str]:
        """Yield the shards that a process reads in training, without end."""
        assert self._key is not None
        for turn in itertools.count():
            if len(self._names) < processes:
                # Each process reads all of them, in an order of its own.
                order = permutation(len(self._names), "stream", *self._key, turn, process)
            else:
                order = permutation(len(self._names), "stream", *self._key, turn)[process::processes]
            yield from (self._names[number] for number in order)

    def _read(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Yield the samples of shards, and {"error": ...} for a shard that is damaged."""
        without = 0  # shards in a row that have no samples
        for name, file in self._opened(iter(names)):
            without += 1
            if isinstance(file, ShardError):
                yield {"error": str(file)}
                continue
            try:
                with file:
                    for sample in group_by_keys(tar_file_expander([{"url": name, "stream": file}])):
                        if tar.is_sample(sample, self._rule.member):
                            without = 0
                            yield sample
            except _DAMAGE as error:
                yield {"error": f"damaged shard {self._root}/{name}: {error.args[0] if error.args else error}"}
            if self._key is not None and without > len(self._names):
                expected = f"expected images ({', '.join(tar.IMAGES)}) and .{self._rule.member}"
                yield {"error": f"no samples in {self._root}: {expected}"}

    def _opened(self, names: Iterator[str]) -> Iterator[tuple[str, IO[bytes] | ShardError]]:
        """Yield shards, open; a thread copies the next one meanwhile if it is remote."""
        ahead = ThreadPoolExecutor(1)
        try:
            waiting = [(name, ahead.submit(self._open, name)) for name in itertools.islice(names, 1)]
            while waiting:
                name, opening = waiting.pop()
                file = opening.result()
                waiting = [(name, ahead.submit(self._open, name)) for name in itertools.islice(names, 1)]
                yield name, file
        finally:
            ahead.shutdown(wait=False, cancel_futures=True)

    def _open(self, name: str) -> IO[bytes] | ShardError:
        try:
            # A copy has no name any more, so that nothing is left of it when its reader is killed.
            with self._store.temporary_copy(name) as path:
                file = open(path, "rb")  # noqa: SIM115 - who reads it closes it
        except OSError as error:
            return ShardError(f"cannot read shard {self._root}/{name}: {error.strerror}")
        except ShardError as error:
            return error
        # A few bytes can stand for more than there is memory.
        if file.read(6).startswith(tar.COMPRESSED):
            file.close()
            return ShardError(f"{self._root}/{name} is compressed: unpack it, shards are plain tars")
        file.seek(0)
        return file
