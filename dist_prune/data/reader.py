"""Samples of a split by shard and number, in either format; shards are opened on first use."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_tools import ShardError, ShardIndex, ShardStore
from data_tools.tar import class_labels, no_class
from dist_prune.data.plan import BLOCK_SHARDS
from dist_prune.data.shard import MissingShard, OpenShard, open_shard

OPEN_SHARDS = 64  # the shuffle blocks of all partitions (see plan.py) span some 50 at a time
FETCHES = 3  # of a shard that another process evicts from the cache before it is opened


class Sample(NamedTuple):
    """A stored image, encoded or as pixels (H, W, C), its label, and for messages its shard and number."""

    image: bytes | np.ndarray
    label: int
    shard: OpenShard
    number: int

    @property
    def place(self) -> str:
        """Shard and key."""
        return self.shard.place(self.number)


class Reader:
    """Reads samples of one split in one process. ``order``: the shards in the order of reading."""

    def __init__(self, store: ShardStore, index: ShardIndex, split: str, order: Sequence[int]) -> None:
        self._store, self._index, self._shards = store, index, index.split(split).shards
        self._labels = class_labels(len(index.class_names))
        self._following = {number: order[at + 1 : at + 1 + BLOCK_SHARDS] for at, number in enumerate(order)}
        self._open: OrderedDict[int, OpenShard | ShardError] = OrderedDict()

    def sample(self, shard: int, number: int) -> Sample:
        """Return a sample.

        Raises:
            ShardError: the shard is missing, unreadable or holds another number of samples than the index
                says; the sample lacks its image or has a label that is no class.
        """
        opened = self._opened(shard)
        label = opened.label(number)
        if label not in self._labels:
            raise ShardError(f"{opened.place(number)}: {no_class(label, len(self._labels))}")
        return Sample(opened.image(number), self._labels[label], opened, number)

    def _opened(self, number: int) -> OpenShard:
        """Return an open shard; one that failed is not tried again for each of its samples."""
        if number not in self._open:
            threading.Thread(target=self._fetch_following, args=(number,), daemon=True).start()
            self._open[number] = self._try_to_open(number)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        found = self._open[number]
        if isinstance(found, ShardError):
            raise found
        return found

    def _try_to_open(self, number: int) -> OpenShard | ShardError:
        shard = self._shards[number]
        name = f"{self._index.root}/{shard.name}"
        problem: ShardError
        for _ in range(FETCHES):
            try:
                path = self._store.fetch(shard)
                return open_shard(path, shard.length, self._index.format, name)
            except MissingShard as error:
                problem = error
            except ShardError as error:
                return error
        return problem

    def _fetch_following(self, number: int) -> None:
        """Prefetch the next shards."""
        for following in self._following[number]:
            # A failure shows again when the shard is needed.
            with contextlib.suppress(ShardError):
                self._store.fetch(self._shards[following])
