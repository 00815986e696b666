"""The parts of a source: a ``RawDataset`` reads ``RawData``, which holds splits of labelled images."""

import os
import shutil
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.errors import ShardError, reported
from data_tools.index import checksum
from data_tools.sources.splits import RawSplit

# The images set aside for testing must not depend on how the shards are shuffled.
SPLIT_SEED = 20_260_101
DOWNLOAD_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class RawData:
    """A data set as its source delivers it."""

    name: str
    class_names: tuple[str, ...]
    # ``train`` and ``test``.
    splits: dict[str, RawSplit]
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


class RawDataset(ABC):
    """A kind of raw data; ``SOURCES`` lists them all."""

    # One particular data set, which can be had without naming a folder.
    is_dataset = True
    # Pixels rather than encoded images.
    arrays = False
    # A number that suits it, or None for the one that suits the format.
    samples_per_shard: int | None = None

    @abstractmethod
    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Find the raw data and list its images.

        Raises:
            ShardError: the data is missing, incomplete or damaged.
        """


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


def stratified_split(labels: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """Divide positions into (train, test), each class in proportion, always in the same way.

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
    return np.flatnonzero(~is_test).tolist(), np.flatnonzero(is_test).tolist()


def refuse_test_fraction(test_fraction: float | None, owner: str) -> None:
    """Raise a ShardError if a test fraction is requested for data that has a test split of its own."""
    if test_fraction is not None:
        raise ShardError(f"{owner} has its own test images: remove --test_fraction")
