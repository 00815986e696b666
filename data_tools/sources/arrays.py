"""Data sets of tiny images that are arrays themselves: digits, CIFAR-10, CIFAR-100 and SVHN."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import ShardError, reported
from data_tools.sources.base import (
    ArraySplit,
    RawData,
    ReadOptions,
    download,
    read_archive,
    read_file,
    stratified_split,
)

DIGITS_TESTED = 360
BRIGHTEST_DIGIT = 16  # the values are 0..16
SIDE = 32
PIXELS = 3 * SIDE * SIDE
# All that a pickled array of numbers needs: of numpy 1 and 2, written by Python 2 and 3.
ALLOWED_GLOBALS = frozenset(
    [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
)
DAMAGES = (AttributeError, KeyError, TypeError, ValueError)  # of a pickle that holds something else
SVHN_URL = "http://ufldl.stanford.edu/housenumbers"
SVHN_FILES = {
    "train": ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
}
SVHN_CLASSES = 10


def read_digits(folder: Path | None, options: ReadOptions) -> RawData:
    """Load scikit-learn's 8x8 gray digits: 1,437 to train on and 360 to test with, always the same ones."""
    if folder is not None:
        raise ShardError(f"digits comes with scikit-learn and takes no folder: remove {folder}")
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / BRIGHTEST_DIGIT)).astype(np.uint8)
    labels = digits.target.astype(int)
    splits = {
        name: ArraySplit(f"digits {name}", pixels[numbers], labels[numbers].tolist())
        for name, numbers in stratified_split(labels.tolist(), DIGITS_TESTED / len(labels)).items()
    }
    return RawData("digits", tuple(map(str, digits.target_names)), splits)


@dataclass(frozen=True)
class Cifar:
    """32x32 RGB images, 50,000 to train on and 10,000 to test with; the layout of one of the two sets."""

    name: str
    url: str
    md5: str
    inside: str  # the folder that the archive unpacks to
    batches: Mapping[str, tuple[str, ...]]  # by split
    labels_key: bytes
    names_file: str
    names_key: bytes

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Read the batches under ``folder``, or download them.

        ``folder`` is that of the batches, the one above it, the archive, or the archive's.
        """
        pickles = self._pickles(folder or download(self.name, self.url, self.md5))
        content = _load(self.names_file, pickles)
        with reported(f"{self.names_file} is damaged", DAMAGES, fix="; expected the names of the classes"):
            names = tuple(name.decode() for name in content[self.names_key])
        splits = {}
        for split, batches in self.batches.items():
            parts = [self._read_batch(batch, len(names), pickles) for batch in batches]
            # A row holds the red plane, then green, then blue.
            planes = np.concatenate([rows for rows, _ in parts]).reshape(-1, 3, SIDE, SIDE)
            pixels = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
            labels = [label for _, part in parts for label in part]
            splits[split] = ArraySplit(f"{self.name} {split}", pixels, labels)
        return RawData(self.name, names, splits)

    def _pickles(self, path: Path) -> dict[str, bytes]:
        """Return the content of each file of the data set, from its folder or from its archive."""
        names = [self.names_file, *(name for batches in self.batches.values() for name in batches)]
        for folder in (path, path / self.inside):
            if (folder / self.batches["test"][0]).is_file():
                return {name: read_file(folder / name, "; unpack the archive again") for name in names}
        expected = self.url.rsplit("/", 1)[-1]
        archive = path / expected if path.is_dir() else path
        if not archive.is_file():
            raise ShardError(
                f"no {self.name} in {path}: expected {expected} or the folder {self.inside} "
                f"with its batches; get it from {self.url}"
            )
        inside = [f"{self.inside}/{name}" for name in names]
        return dict(zip(names, read_archive(archive, inside, f"; get it again from {self.url}"), strict=True))

    def _read_batch(self, name: str, classes: int, pickles: Mapping[str, bytes]) -> tuple[np.ndarray, list[int]]:
        """Return the rows (N, 3072) in uint8 and the labels of one batch."""
        batch = _load(name, pickles)
        with reported(f"batch {name} is damaged", DAMAGES, fix="; expected images and labels"):
            rows, labels = batch[b"data"], [int(label) for label in batch[self.labels_key]]
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
    batches={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
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


class _ArrayUnpickler(pickle.Unpickler):
    """Loads arrays, numbers, text and containers; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _load(name: str, pickles: Mapping[str, bytes]) -> Any:
    """Load one pickle of Python 2 or 3; texts come as bytes."""
    # A hostile pickle can raise nearly anything while it is being read.
    with reported(f"{name} is refused", Exception):
        return _ArrayUnpickler(io.BytesIO(pickles[name]), encoding="bytes").load()


def read_svhn(folder: Path | None, options: ReadOptions) -> RawData:
    """Read the two MATLAB files of house numbers in ``folder``, or download them.

    73,257 digits to train on and 26,032 to test with, 32x32 RGB; without the extra set.
    """
    splits = {}
    for split, (name, md5) in SVHN_FILES.items():
        path = (folder or download("svhn", f"{SVHN_URL}/{name}", md5)) / name
        splits[split] = ArraySplit(f"svhn {split}", *_load_svhn(path))
    return RawData("svhn", tuple(str(digit) for digit in range(SVHN_CLASSES)), splits)


def _load_svhn(path: Path) -> tuple[np.ndarray, list[int]]:
    """Return pixels (N, 32, 32, 3) and labels."""
    from scipy.io import loadmat  # slow to import, and only needed here

    if not path.is_file():
        raise ShardError(f"no {path.name} in {path.parent}: get {SVHN_URL}/{path.name}")
    # scipy has no common error for damaged files.
    with reported(f"cannot read {path}", Exception, fix=f"; get it again from {SVHN_URL}"):
        content = loadmat(path, variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].ravel()
    if pixels.dtype != np.uint8 or pixels.shape != (SIDE, SIDE, 3, len(labels)):
        raise ShardError(f"{path} is damaged: expected 32x32 RGB pixels and one label for each image")
    if not len(labels) or not set(np.unique(labels).tolist()) <= set(range(SVHN_CLASSES + 1)):
        raise ShardError(f"{path} is damaged: expected labels from 1 to 10")
    # The images stand in the last dimension, and the digit 0 is called 10.
    return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2)), (labels.astype(int) % SVHN_CLASSES).tolist()
