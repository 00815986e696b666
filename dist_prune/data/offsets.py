"""Where the samples of a shard begin: its headers are read once on a machine, not once by each worker and epoch."""

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock

from data_tools import tar
from data_tools.sources.base import data_home
from dist_prune.errors import UserError
from dist_prune.files import write_atomic

NOWHERE = (0, -1)  # (offset, size) of a missing part
STRIPE = 2  # shards whose keys agree in so many digits share a lock, so that locks stay few
# Nothing there, damaged, no place to write, or a file system without locks, which filelock calls not implemented.
NOT_KEPT = (OSError, ValueError, UserError, NotImplementedError)


def offsets_of(file: IO[bytes], path: Path, label_member: str) -> np.ndarray:
    """Return (offset, size) of the image, the label and the first member of each sample: (N, 3, 2), int64.

    They are kept under ``$DIST_PRUNE_DATA/offsets``, for this path with this size and time. Without a place to keep
    them they are read again.

    Raises:
        ValueError: as ``tar.members``.
    """
    state = os.fstat(file.fileno())
    name = f"{os.path.realpath(path)} {state.st_size} {state.st_mtime_ns} {label_member}"
    key = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
    kept = data_home() / "offsets" / f"{key}.npy"
    with contextlib.suppress(*NOT_KEPT):
        return _load(kept)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(*NOT_KEPT):
            kept.parent.mkdir(parents=True, exist_ok=True)
            # All workers of a rank come to a new shard at the same time: one reads, the others wait.
            stack.enter_context(FileLock(kept.parent / f".{key[:STRIPE]}.lock"))
            return _load(kept)
        found = _read(file, label_member)
        with contextlib.suppress(*NOT_KEPT):
            stream = io.BytesIO()
            np.save(stream, found)
            write_atomic(kept, stream.getvalue())
    return found


def _read(file: IO[bytes], label_member: str) -> np.ndarray:
    groups = tar.samples(tar.members(file))
    rows = [_row(parts, label_member) for _, parts in groups if tar.is_sample(parts, label_member)]
    return np.array(rows, dtype=np.int64).reshape(-1, 3, 2)


def _row(parts: tar.Parts, label_member: str) -> list[tuple[int, int]]:
    images, label = tar.images_of(parts), parts.get(label_member)
    first = next(iter(parts.values()))
    return [images[0][1:] if len(images) == 1 else NOWHERE, label[1:] if label else NOWHERE, first[1:]]


def _load(kept: Path) -> np.ndarray:
    # It unpickles nothing. As a plain array, whose elements are read in a third of the time.
    found = np.asarray(np.lib.format.open_memmap(kept, mode="r"))
    if found.dtype != np.int64 or found.shape[1:] != (3, 2):
        raise ValueError("no offsets of ours")
    return found
