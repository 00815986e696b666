"""Decoded pixels of tiny images: a file for each split, made once on a machine and mapped by all ranks and workers.

A file holds a header, the pixels (N, H, W, C), uint8, and the labels (N,), int64, in the order of the index. It lies
under ``$DIST_PRUNE_DATA/decoded``, named by a hash of all that decides its content.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import joblib
import numpy as np
import PIL
from filelock import FileLock, Timeout
from PIL import features
from tqdm import tqdm

from data_tools import ShardError, ShardIndex, ShardStore
from data_tools.errors import reported
from data_tools.images import ImageError
from data_tools.parallel import each
from data_tools.sources.base import data_home
from dist_prune.config import AugmentConfig
from dist_prune.data.reader import Reader
from dist_prune.data.transforms import ImageTransform

DECODER = 1  # to be raised by whatever changes pixels or labels
HEADER_BYTES = 4096
CHUNK = 1000  # samples that a process decodes at a time
NO_CROP = np.empty(0)
UNREADABLE = -1  # label of a sample that is read from its shard, to report or skip it as everywhere
LONG = 1.0  # seconds of making above which a line tells about it
KEPT = re.compile(r"[0-9a-f]{32}\.pixels")
PARTIAL = re.compile(r"[0-9a-f]{32}\.partial")
STRIPE = 2  # files whose keys agree in so many digits share a lock, so that locks stay few
# No file system to write to, or one without locks, which filelock calls not implemented.
NO_PLACE = (OSError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class DecodedSplit:
    """The samples of a split; both arrays are mapped, read-only.

    pixels: (N, H, W, C), uint8; labels: (N,), int64, ``UNREADABLE`` for some; starts: position of the first sample of
    each shard; positions: of the samples that are counted, if not all are.
    """

    path: Path
    pixels: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    positions: np.ndarray | None = None

    def only(self, rows: Sequence[np.ndarray] | None) -> "DecodedSplit":
        """Return the samples ``rows`` of each shard."""
        if rows is None:
            return self
        positions = np.concatenate([start + part for start, part in zip(self.starts, rows, strict=True)])
        starts = np.cumsum([0, *map(len, rows)])[:-1]
        return DecodedSplit(self.path, self.pixels, self.labels, starts, positions)

    def take(self, shards: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (B, H, W, C) and labels (B,) of samples, as copies."""
        positions = self.starts[shards] + rows
        if self.positions is not None:
            positions = self.positions[positions]
        return self.pixels.take(positions, axis=0), self.labels[positions]


def open_decoded(
    store: ShardStore, index: ShardIndex, split: str, limit: int, in_use: Collection[Path] = (), make: bool = True
) -> DecodedSplit | None:
    """Return the decoded samples of a split, which one process of the machine makes, or None if they have no place.

    Args:
        store: where the shards are.
        index: their index, which knows the shape of the images.
        split: its name.
        limit: the most bytes of all these files; those least recently used are removed.
        in_use: files that stay.
        make: make the file if it is missing.

    Raises:
        OSError, NotImplementedError, ValueError: it cannot be made here.
        ShardError: a shard cannot be read.
    """
    found = _File.of(store, index, split)
    if found.size > limit:
        return None
    with contextlib.suppress(OSError, ValueError):
        return found.load()
    if not make:
        return None
    found.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(found.path)):
        with contextlib.suppress(OSError, ValueError):
            return found.load()
        begin = time.monotonic()
        if not found.make(store, index, split, limit, in_use):
            return None
        seconds = time.monotonic() - begin
        if seconds > LONG:
            what = f"decoded the {found.shape[0]:,} images of {split} of {index.root} in {seconds:.1f} s"
            tqdm.write(f"{what}; kept in {found.path}", file=sys.stderr)
        return found.load()


@dataclass(frozen=True)
class _File:
    """A file by all that is known before it is opened; shape: (N, H, W, C)."""

    path: Path
    shape: tuple[int, int, int, int]
    lengths: tuple[int, ...]

    @staticmethod
    def of(store: ShardStore, index: ShardIndex, split: str) -> "_File":
        shards = index.split(split).shards
        assert index.image_shape, "images of one size"
        channels, height, width = index.image_shape
        key: list[object] = [DECODER, PIL.__version__, features.version_codec("jpg"), features.version_module("webp")]
        key += [index.fingerprint, split, index.image_shape, index.class_names, index.label]
        for shard in shards:
            # Without a checksum, what is at the same address with the same size is the same shard.
            key += [*shard, None if shard.sha256 else str(index.root)]
            if isinstance(index.root, Path):  # local shards are not compared with their checksums
                with reported(f"cannot read shard {shard.name}"):
                    key.append(store.fetch(shard).stat().st_mtime_ns)
        name = hashlib.sha256(repr(key).encode(errors="surrogateescape")).hexdigest()[:32]
        lengths = tuple(shard.length for shard in shards)
        return _File(data_home() / "decoded" / f"{name}.pixels", (sum(lengths), height, width, channels), lengths)

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *self.lengths])[:-1]

    @property
    def pixel_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def size(self) -> int:
        return HEADER_BYTES + self.pixel_bytes + 8 * self.shape[0]

    def header(self, labels: np.ndarray) -> bytes:
        """Return the first bytes of the file, which end with a checksum of themselves and of the labels."""
        about = json.dumps({"decoded": self.path.stem, "shape": self.shape}).encode()
        return (about + b"\n%08x\n" % zlib.crc32(labels.tobytes(), zlib.crc32(about))).ljust(HEADER_BYTES, b"\0")

    def load(self) -> DecodedSplit:
        """Map the file; a ValueError if it is damaged."""
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size != self.size:
                raise ValueError("another size")
            header = file.read(HEADER_BYTES)
            pixels = np.memmap(file, np.uint8, "r", HEADER_BYTES, self.shape)
            labels = np.memmap(file, "<i8", "r", HEADER_BYTES + self.pixel_bytes, self.shape[:1])
            if header != self.header(labels):
                raise ValueError("another header")
        with contextlib.suppress(OSError):  # the time of its last use
            os.utime(self.path)
        # As plain arrays, which are indexed faster.
        return DecodedSplit(self.path, np.asarray(pixels), np.asarray(labels), self.starts)

    def make(self, store: ShardStore, index: ShardIndex, split: str, limit: int, in_use: Collection[Path]) -> bool:
        """Write the file; False if there is no room beside those in use. The caller holds its lock."""
        partial = self.path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                with FileLock(self.path.parent / ".evict.lock"):
                    if not _reserve(self.path, self.size, limit, in_use):
                        return False
                    # A disk that is too small shows now, not after minutes of decoding.
                    os.posix_fallocate(file.fileno(), 0, self.size)
                self._fill(file, store, index, split)
                os.fsync(file.fileno())
            partial.replace(self.path)
            return True
        finally:
            partial.unlink(missing_ok=True)

    def _fill(self, file: IO[bytes], store: ShardStore, index: ShardIndex, split: str) -> None:
        chunks = [
            (shard, first, min(first + CHUNK, length))
            for shard, length in enumerate(self.lengths)
            for first in range(0, length, CHUNK)
        ]
        work = functools.partial(_decode, file.fileno(), self, store, index, split)
        # A process takes longer to start than to decode few images.
        processes = min(int(joblib.cpu_count()), 1 + self.shape[0] // (2 * CHUNK))
        labels = np.empty(self.shape[0], "<i8")
        with tqdm(
            total=self.shape[0], unit=" images", desc=f"decoding {split}", disable=not sys.stderr.isatty(), leave=False
        ) as bar:
            for first, found in each(work, chunks, processes):
                labels[first : first + len(found)] = found
                bar.update(len(found))
        _write_at(file.fileno(), labels.tobytes(), HEADER_BYTES + self.pixel_bytes)
        _write_at(file.fileno(), self.header(labels), 0)


def _decode(
    file: int, of: _File, store: ShardStore, index: ShardIndex, split: str, chunk: tuple[int, int, int]
) -> tuple[int, np.ndarray]:
    """Write the pixels of some samples of a shard; return the position of the first one, and their labels."""
    shard, first, end = chunk
    reader = Reader(store, index, split, [shard])
    reader.open(shard)  # of a shard that cannot be read nothing is kept
    pixels = np.zeros((end - first, *of.shape[1:]), np.uint8)
    labels = np.full(end - first, UNREADABLE, np.int64)
    transform = ImageTransform(index, None, AugmentConfig(), training=False)
    for row in range(first, end):
        with contextlib.suppress(ShardError, ImageError):
            image, label = reader.sample(shard, row)
            pixels[row - first], labels[row - first] = transform.prepare(image, NO_CROP), label
    start = int(of.starts[shard]) + first
    _write_at(file, pixels.tobytes(), HEADER_BYTES + start * pixels[0].size)
    return start, labels


def _write_at(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _reserve(own: Path, size: int, limit: int, in_use: Collection[Path]) -> bool:
    """Remove abandoned files, and the least recently used ones until there is room; False if there is not enough."""
    folder = own.parent
    for partial in _named(folder, PARTIAL):
        if partial != own.with_suffix(".partial"):
            with contextlib.suppress(Timeout, FileNotFoundError), _held_or(own, partial):
                partial.unlink()
    kept = {path: state for path, state in _named(folder, KEPT).items() if path != own}
    room = limit - size - sum(state.st_size for state in _named(folder, PARTIAL).values())
    room -= sum(state.st_size for path, state in kept.items() if path in in_use)
    if room < 0:
        return False
    for path, state in sorted(kept.items(), key=lambda item: -item[1].st_mtime_ns):
        if path not in in_use:
            room -= state.st_size
            if room < 0:
                path.unlink()
    return True


def _held_or(own: Path, other: Path) -> contextlib.AbstractContextManager[object]:
    """Return the lock of another file, to be held for a block; nothing where this process holds it already."""
    same = _lock_of(own) == _lock_of(other)
    return contextlib.nullcontext() if same else FileLock(_lock_of(other), blocking=False)


def _named(folder: Path, pattern: re.Pattern[str]) -> dict[Path, os.stat_result]:
    found = {}
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # just renamed by its maker
            if pattern.fullmatch(name):
                found[folder / name] = (folder / name).stat()
    return found


def _lock_of(path: Path) -> Path:
    return path.parent / f".{path.name[:STRIPE]}.lock"
