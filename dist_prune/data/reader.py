"""Samples of a split by shard and number; shards are opened on first use.

Nothing is extracted and nothing is unpickled. Opening a shard finds out whether it agrees with the index.
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_tools import ShardError, ShardIndex, ShardStore, tar
from data_tools.labels import LARGEST_LABEL, Labels
from dist_prune.data.offsets import NOWHERE, offsets_of
from dist_prune.data.plan import BLOCK_SHARDS

OPEN_SHARDS = 64  # the shuffle blocks of all partitions (see plan.py) span some 50 at a time
FETCHES = 3  # of a shard that another process evicts from the cache before it is opened


class MissingShard(ShardError):
    """There is no such file."""


class OpenShard:
    """An open shard of encoded images (``KEY.jpg`` and the like) and label members; others are ignored.

    Samples are 0 to ``length``, exclusive. Not to be shared with forked processes.
    """

    def __init__(self, path: Path, name: str, label_member: str = tar.LABEL) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as the shard is
        self._parts = offsets_of(self._file, path, label_member)
        self.name, self.length = name, len(self._parts)

    def image(self, number: int) -> bytes:
        """Return an encoded image."""
        offset, size = self._part(number, 0)
        if size > tar.LARGEST_IMAGE:
            raise ShardError(f"{self.place(number)}: an image of {size} bytes, {tar.LARGEST_IMAGE} are allowed")
        return self._read(offset, size)

    def label(self, number: int) -> bytes:
        """Return the content of a label member, or the beginning of one that is too long to be any."""
        offset, size = self._part(number, 1)
        return self._read(offset, min(size, LARGEST_LABEL))

    def place(self, number: int) -> str:
        """Return shard and key, which is in the header before the first member."""
        offset, _ = self._part(number, 2)
        key, _ = tar.split_name(tar.member_name(self._read(offset - tar.BLOCK, tar.BLOCK)))
        return f"{self.name}, sample {key}"

    def _part(self, number: int, part: int) -> tuple[int, int]:
        offset, size = self._parts[number, part].tolist()
        if (offset, size) == NOWHERE:
            raise ShardError(
                f"damaged shard: {self.place(number)} lacks its image or its label, or has two images; "
                "make or copy it again"
            )
        return offset, size

    def _read(self, offset: int, size: int) -> bytes:
        try:  # not ``reported``: that would take a tenth of the time of a tiny image
            data = os.pread(self._file.fileno(), size, offset)
        except OSError as error:
            raise ShardError(f"cannot read shard {self.name}: {error.strerror}") from error
        if len(data) < size:
            raise ShardError(f"damaged shard {self.name}: it became shorter; make or copy it again")
        return data


def open_shard(path: Path, length: int, name: str | None = None, label_member: str = tar.LABEL) -> OpenShard:
    """Open a shard; ``name`` is what messages call it.

    Raises:
        MissingShard: there is no such file.
        ShardError: it is no tar that may be read, or holds more or fewer samples than ``length``.
    """
    name = name or str(path)
    try:
        opened = OpenShard(path, name, label_member)
        if opened.length != length:
            raise ValueError(f"found {opened.length} samples, expected {length}")
        return opened
    except FileNotFoundError as error:
        raise MissingShard(f"missing shard {name}: the index lists it; make or copy it again") from error
    except OSError as error:
        raise ShardError(f"cannot read shard {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise ShardError(f"damaged shard {name}: {error}; make or copy it again") from error


class Reader:
    """Reads samples of one split in one process.

    Args:
        store: where the shards are.
        index: their index.
        split: its name.
        order: the shards in the order of reading.
        rows: the samples of each shard that are counted, if not all are.
    """

    def __init__(
        self,
        store: ShardStore,
        index: ShardIndex,
        split: str,
        order: Sequence[int],
        rows: Sequence[np.ndarray] | None = None,
    ) -> None:
        self._rows = rows
        self._store, self._index, self._shards = store, index, index.split(split).shards
        self._labels = Labels(index.label, index.class_names)
        self._following = {number: order[at + 1 : at + 1 + BLOCK_SHARDS] for at, number in enumerate(order)}
        self._open: OrderedDict[int, OpenShard | ShardError] = OrderedDict()

    def sample(self, shard: int, number: int) -> tuple[bytes, int]:
        """Return an encoded image and its label.

        Raises:
            ShardError: the shard is missing, unreadable or holds another number of samples than the index
                says; the sample lacks its image or has a label that is no class.
        """
        opened, number = self.open(shard), self._row(shard, number)
        try:
            label = self._labels.number(opened.label(number))
        except ValueError as error:
            raise ShardError(f"{opened.place(number)}: {error}") from error
        return opened.image(number), label

    def place(self, shard: int, number: int) -> str:
        """Return shard and key of a sample, for messages."""
        return self.open(shard).place(self._row(shard, number))

    def _row(self, shard: int, number: int) -> int:
        return number if self._rows is None else int(self._rows[shard][number])

    def open(self, number: int) -> OpenShard:
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
                return open_shard(path, shard.length, name, self._index.label.member)
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
