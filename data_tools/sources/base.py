"""The parts of a source: a ``RawDataset`` reads ``RawData``, which holds splits of labelled images."""

import copy
import io
import os
import shutil
import tarfile
import urllib.request
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, TypeVar

import numpy as np

from data_tools.errors import ShardError, reported
from data_tools.images import encode_png
from data_tools.index import checksum
from data_tools.labels import classes_of, spelled

# The images set aside for testing must not depend on how the shards are shuffled.
SPLIT_SEED = 20_260_101
# Bytes of a small PNG besides its pixels and one for each row: what cannot be compressed is stored.
PNG_OVERHEAD = 128
DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte
TAR_DAMAGES = (tarfile.TarError, zlib.error, EOFError, OSError, KeyError)


_Split = TypeVar("_Split", bound="RawSplit")


class RawSplit(ABC):
    """Labelled images that are read one at a time, in any order, also in forked processes.

    Of each image: ``names`` (for messages and its identity), ``labels`` (class numbers), ``sizes`` (encoded
    bytes; of an array a bound on those).
    """

    columns: ClassVar[tuple[str, ...]] = ("names", "labels", "sizes")  # attributes with a value for each image

    def __init__(self, names: list[str], labels: list[int], sizes: list[int]) -> None:
        self.names, self.labels, self.sizes = names, labels, sizes

    def part(self: _Split, numbers: Sequence[int]) -> _Split:
        """Return a split of some of the images."""
        chosen = copy.copy(self)
        for column in self.columns:
            setattr(chosen, column, [getattr(self, column)[number] for number in numbers])
        return chosen

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return the encoded image."""

    def origin(self, number: int) -> str:
        """Return where an image comes from, for error messages."""
        return self.names[number]

    def identity(self, number: int) -> str:
        """Return a text that identifies the image independently of the location of its source, cheaply."""
        # Reading all files to compare them would take as long as writing them.
        return f"{self.names[number]}:{self.sizes[number]}"


class ArraySplit(RawSplit):
    """Images of pixels: an array (N, H, W) or (N, H, W, 3) in uint8, or N of such images; encoded as PNG."""

    def __init__(self, title: str, array: np.ndarray | Sequence[np.ndarray], labels: list[int]) -> None:
        names = [f"{title}[{number}]" for number in range(len(labels))]
        super().__init__(names, labels, [array[0].nbytes + len(array[0]) + PNG_OVERHEAD] * len(labels))
        self.array = array

    def read(self, number: int) -> bytes:
        """Encode one image as PNG."""
        return encode_png(self.array[number])

    def identity(self, number: int) -> str:
        """Return a checksum of the pixels."""
        return f"{zlib.crc32(self.array[number].tobytes()):08x}"


class FileSplit(RawSplit):
    """Images in files; ``names`` are paths relative to ``root``."""

    def __init__(self, root: Path, names: list[str], labels: list[int]) -> None:
        super().__init__(names, labels, [])
        self.root = root
        for number in range(len(names)):
            with reported(f"cannot read {self.origin(number)}"):
                self.sizes.append(os.path.getsize(self.origin(number)))

    def read(self, number: int) -> bytes:
        """Read one file as it is."""
        return read_file(self.root / self.names[number])

    def origin(self, number: int) -> str:
        """Return the path of the file."""
        return os.path.join(self.root, self.names[number])


class PackedSplit(RawSplit):
    """Images in one open file, each at its offset."""

    columns = (*RawSplit.columns, "offsets")

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__([], [], [])
        self.file = file
        self.offsets: list[int] = []

    def add(self, name: str, label: int, offset: int, size: int) -> None:
        """Add an image."""
        self.names.append(name)
        self.labels.append(label)
        self.offsets.append(offset)
        self.sizes.append(size)

    def read(self, number: int) -> bytes:
        """Read one image; without a file position, because forked processes share the open file."""
        with reported(f"cannot read {self.origin(number)}"):
            return os.pread(self.file.fileno(), self.sizes[number], self.offsets[number])


@dataclass(frozen=True)
class RawData:
    """A data set as its source delivers it."""

    name: str
    class_names: tuple[str, ...]
    # ``train`` and ``test``, and perhaps ``validation``.
    splits: Mapping[str, RawSplit]
    # Readable names where ``class_names`` are codes, or nothing.
    class_titles: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a source."""

    # The part of the train images to set aside for testing.
    test_fraction: float | None
    # A folder with room for as much as the raw data; its user makes it.
    scratch: Path
    # Show a bar where reading takes long.
    progress: bool


@dataclass(frozen=True)
class RawDataset:
    """A kind of raw data; ``SOURCES`` lists them all."""

    # Finds the raw data in a folder and lists its images; a ShardError if it is missing, incomplete or damaged.
    read: Callable[[Path | None, ReadOptions], RawData]
    # One particular data set, which can be had without naming a folder.
    is_dataset: bool = True
    # A number that suits it; None: as ``writers.SAMPLES_PER_SHARD``.
    samples_per_shard: int | None = None
    # A test split may be missing, and is then set aside on request.
    takes_test_fraction: bool = False


def data_home() -> Path:
    """Return the folder of named data sets: ``$DIST_PRUNE_DATA``, or ``~/.cache/dist_prune``."""
    chosen = os.environ.get("DIST_PRUNE_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "dist_prune"


def download(source: str, url: str, md5: str) -> Path:
    """Return the folder of an original file, after downloading it if it is not there yet."""
    folder = data_home() / "downloads"
    path = folder / url.rsplit("/", 1)[-1]
    advice = (
        f"; get {url} on a machine with a network and pass its folder on: "
        f"dist-prune shards make {source} FOLDER --out DIR"
    )
    with reported(f"cannot download {source}", fix=advice):
        if path.is_file() and checksum(path, "md5") == md5:
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as answer, open(partial, "wb") as file:
                shutil.copyfileobj(answer, file)
            if checksum(partial, "md5") != md5:
                raise OSError(f"{url} is not the original: its MD5 is not {md5}")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return folder


def read_file(path: Path, fix: str = "") -> bytes:
    """Return the content of a file; ``fix`` is appended to the message of an error."""
    with reported(f"cannot read {path}", fix=fix):
        return path.read_bytes()


def read_archive(path: Path, names: Iterable[str], fix: str) -> list[bytes]:
    """Return the content of files in a tar."""
    with reported(f"cannot read {path}", TAR_DAMAGES, fix=fix), tarfile.open(path) as tar:
        # A folder of that name has nothing to read.
        return [(tar.extractfile(name) or io.BytesIO()).read() for name in names]


def number_labels(labels: Mapping[str, Sequence[str]], place: object) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Return the names of the classes, and the numbers of the labels of each split.

    Raises:
        ShardError: a split has a class of which train has no image; ``place`` is for the message.
    """
    spelling = {split: list(map(spelled, of)) for split, of in labels.items()}
    for split, of in spelling.items():
        if odd := sorted(set(of) - set(spelling.get("train", ()))):
            raise ShardError(f"{split} of {place} has the class {odd[0]!r}, which train has not")
    _, names = classes_of(set(spelling.get("train", ())))
    numbers = {name: number for number, name in enumerate(names)}
    return names, {split: [numbers[label] for label in of] for split, of in spelling.items()}


def stratified_split(labels: Sequence[int], fraction: float) -> dict[str, list[int]]:
    """Divide positions into ``train`` and ``test``, each class in proportion, always in the same way.

    The test part has ``round(fraction * N)`` positions, unless that would leave a class without
    an image to train on. Positions keep their order within both parts.
    """
    classes, counts = np.unique(np.asarray(labels), return_counts=True)
    wanted = counts * fraction
    quota = np.floor(wanted).astype(int)
    # Largest remainders first; the stable sort settles ties by class number.
    missing = round(fraction * len(labels)) - int(quota.sum())
    quota[np.argsort(quota - wanted, kind="stable")[:missing]] += 1
    quota = np.minimum(quota, counts - 1)
    # RandomState's streams are frozen: the same test set with every version of numpy.
    rng = np.random.RandomState(SPLIT_SEED)
    is_test = np.zeros(len(labels), dtype=bool)
    for label, number in zip(classes, quota, strict=True):
        positions = np.flatnonzero(np.asarray(labels) == label)
        is_test[rng.permutation(positions)[:number]] = True
    return {"train": np.flatnonzero(~is_test).tolist(), "test": np.flatnonzero(is_test).tolist()}
