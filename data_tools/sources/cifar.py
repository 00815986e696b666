"""CIFAR-10 from its original files: pickled batches, read without giving a pickle any power."""

import contextlib
import functools
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import ShardError
from data_tools.files import data_home
from data_tools.sources.base import ArraySplit, RawData, RawSplit, refuse_test_fraction

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
BATCHES_FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32

# All that a pickled array of numbers needs: of numpy 1 and 2, written by Python 2 and 3.
ALLOWED_GLOBALS = frozenset(
    [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
    + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
)


class Cifar10:
    """CIFAR-10: 50,000 images to train on and 10,000 to test with, 32x32 RGB, 10 classes."""

    is_dataset = True
    samples_per_shard = 1000

    def read(self, folder: Path | None, test_fraction: float | None) -> RawData:
        """Read the batches under ``folder``, or download them; see ``_open_batches`` for what counts."""
        refuse_test_fraction(test_fraction, "cifar10")
        with _open_batches(folder if folder is not None else download()) as read_bytes:
            splits: dict[str, RawSplit] = {
                split: _read_split(split, names, read_bytes) for split, names in BATCHES.items()
            }
        return RawData(name="cifar10", class_names=CLASS_NAMES, splits=splits)


def download() -> Path:
    """Return the original archive in the data folder, fetched by torchvision unless it lies there.

    Raises:
        ShardError: no network, or a damaged download.
    """
    from torchvision.datasets.utils import download_url  # brings torch: only needed here

    cache = data_home() / "downloads"
    try:
        download_url(URL, str(cache), ARCHIVE, ARCHIVE_MD5)
    except (OSError, RuntimeError) as error:
        raise ShardError(
            f"cannot download CIFAR-10 ({error}): get {URL} on a machine with a network "
            f"and pass it on: dist-prune shards make cifar10 PATH/{ARCHIVE} --out DIR"
        ) from error
    return cache / ARCHIVE


@contextlib.contextmanager
def _open_batches(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Give a function that reads a batch by name.

    ``path`` is the folder of the batches, the folder above it, the archive, or its folder.
    """
    for folder in (path, path / BATCHES_FOLDER):
        if (folder / "test_batch").is_file():
            yield functools.partial(_read_file, folder)
            return
    archive = path / ARCHIVE if path.is_dir() else path
    if not archive.is_file():
        raise ShardError(
            f"no CIFAR-10 in {path}: expected {ARCHIVE} or the folder {BATCHES_FOLDER} with its batches"
        )
    try:
        with tarfile.open(archive) as tar:
            yield functools.partial(_read_member, tar)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ShardError(f"cannot read {archive}: {error}; get it again from {URL}") from error


def _read_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ShardError(f"cannot read {folder / name}: {error.strerror}; unpack {ARCHIVE} again") from error


def _read_member(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        stream = tar.extractfile(f"{BATCHES_FOLDER}/{name}")
    except KeyError:
        stream = None
    if stream is None:
        raise ShardError(f"{tar.name!r} holds no {BATCHES_FOLDER}/{name}: get it again from {URL}")
    return stream.read()


def _read_split(split: str, names: list[str], read_bytes: Callable[[str], bytes]) -> ArraySplit:
    batches = [_parse_batch(name, read_bytes(name)) for name in names]
    rows = np.concatenate([data for data, _ in batches])
    labels = [label for _, part in batches for label in part]
    # A row holds the red plane, then green, then blue.
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArraySplit(f"cifar10 {split}", pixels, labels)


class _ArrayUnpickler(pickle.Unpickler):
    """Loads arrays, numbers, text and containers; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        return super().find_class(module, name)


def _parse_batch(name: str, data: bytes) -> tuple[np.ndarray, list[int]]:
    """Return the rows (N, 3072) in uint8 and the labels of one batch."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        rows, labels = batch[b"data"], [int(label) for label in batch[b"labels"]]
    except Exception as error:  # a hostile pickle can raise nearly anything while it is being read
        raise ShardError(f"CIFAR-10 batch {name} is refused: {str(error) or type(error).__name__}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.shape != (len(labels), PIXELS):
        raise ShardError(
            f"CIFAR-10 batch {name} is damaged: expected one row of {PIXELS} bytes for each label"
        )
    if not labels or not all(0 <= label < len(CLASS_NAMES) for label in labels):
        raise ShardError(f"CIFAR-10 batch {name} is damaged: expected labels from 0 to 9")
    return rows, labels
