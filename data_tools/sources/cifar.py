"""CIFAR-10 and CIFAR-100 from their original files: pickles, read without giving them any power."""

import contextlib
import functools
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import ShardError
from data_tools.sources.base import (
    RawData,
    RawDataset,
    RawSplit,
    ReadOptions,
    download,
    refuse_test_fraction,
)
from data_tools.sources.splits import ArraySplit

SIDE = 32
PIXELS = 3 * SIDE * SIDE

# All that a pickled array of numbers needs: of numpy 1 and 2, written by Python 2 and 3.
ALLOWED_GLOBALS = frozenset(
    [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
)


_ReadBytes = Callable[[str], bytes]


@dataclass(frozen=True)
class Cifar(RawDataset):
    """32x32 RGB images, 50,000 to train on and 10,000 to test with; the layout of one of the two sets."""

    name: str
    url: str
    md5: str
    inside: str  # the folder that the archive unpacks to
    batches: Mapping[str, tuple[str, ...]]  # by split
    labels_key: bytes
    names_file: str
    names_key: bytes

    arrays = True

    @property
    def archive(self) -> str:
        """The name of the original archive."""
        return self.url.rsplit("/", 1)[-1]

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Read the batches under ``folder``, or download them.

        ``folder`` is that of the batches, the one above it, the archive, or the archive's.
        """
        refuse_test_fraction(options.test_fraction, self.name)
        found = folder if folder is not None else download(self.name, self.url, self.md5)
        with self._open(found) as read_bytes:
            names = self._class_names(read_bytes)
            splits: dict[str, RawSplit] = {
                split: self._read_split(split, len(names), read_bytes) for split in self.batches
            }
        return RawData(self.name, names, splits)

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[_ReadBytes]:
        """Give a function that reads a file of the data set by name."""
        for folder in (path, path / self.inside):
            if (folder / self.batches["test"][0]).is_file():
                yield functools.partial(_read_file, folder)
                return
        archive = path / self.archive if path.is_dir() else path
        if not archive.is_file():
            raise ShardError(
                f"no {self.name} in {path}: expected {self.archive} or the folder {self.inside} "
                f"with its batches; get it from {self.url}"
            )
        try:
            with tarfile.open(archive) as tar:
                yield functools.partial(_read_member, tar, self.inside)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise ShardError(f"cannot read {archive}: {error}; get it again from {self.url}") from error

    def _class_names(self, read_bytes: _ReadBytes) -> tuple[str, ...]:
        content = _load(self.names_file, read_bytes)
        try:
            return tuple(name.decode() for name in content[self.names_key])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{self.names_file} is damaged: expected the names of the classes") from error

    def _read_split(self, split: str, classes: int, read_bytes: _ReadBytes) -> ArraySplit:
        parts = [self._read_batch(name, classes, read_bytes) for name in self.batches[split]]
        rows = np.concatenate([rows for rows, _ in parts])
        labels = [label for _, part in parts for label in part]
        # A row holds the red plane, then green, then blue.
        pixels = np.ascontiguousarray(rows.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        return ArraySplit(f"{self.name} {split}", pixels, labels)

    def _read_batch(self, name: str, classes: int, read_bytes: _ReadBytes) -> tuple[np.ndarray, list[int]]:
        """Return the rows (N, 3072) in uint8 and the labels of one batch."""
        batch = _load(name, read_bytes)
        try:
            rows, labels = batch[b"data"], [int(label) for label in batch[self.labels_key]]
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"batch {name} is damaged: expected images and labels") from error
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != (len(labels), PIXELS):
            raise ShardError(f"batch {name} is damaged: expected one row of {PIXELS} bytes for each label")
        if not labels or not all(0 <= label < classes for label in labels):
            raise ShardError(f"batch {name} is damaged: expected labels from 0 to {classes - 1}")
        return rows, labels


CIFAR10 = Cifar(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    inside="cifar-10-batches-py",
    batches={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    labels_key=b"labels",
    names_file="batches.meta",
    names_key=b"label_names",
)
CIFAR100 = Cifar(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    inside="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    labels_key=b"fine_labels",
    names_file="meta",
    names_key=b"fine_label_names",
)


def _read_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ShardError(
            f"cannot read {folder / name}: {error.strerror}; unpack the archive again"
        ) from error


def _read_member(tar: tarfile.TarFile, inside: str, name: str) -> bytes:
    try:
        stream = tar.extractfile(f"{inside}/{name}")
    except KeyError:
        stream = None
    if stream is None:
        raise ShardError(f"{tar.name!r} holds no {inside}/{name}: get it again")
    return stream.read()


class _ArrayUnpickler(pickle.Unpickler):
    """Loads arrays, numbers, text and containers; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _load(name: str, read_bytes: _ReadBytes) -> Any:
    """Load one pickle of Python 2 or 3; texts come as bytes."""
    data = read_bytes(name)
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can raise nearly anything while it is being read
        raise ShardError(f"{name} is refused: {str(error) or type(error).__name__}") from error
