"""The parts of a source: a ``RawDataset`` reads ``RawData``, which holds splits of labelled images."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from data_tools.errors import ShardError
from data_tools.images import ImageFacts

# The images set aside for testing must not depend on how the shards are shuffled.
SPLIT_SEED = 20_260_101


class RawSplit(Protocol):
    """Labelled images that are read one at a time, in any order, also in forked processes."""

    @property
    def labels(self) -> Sequence[int]:
        """The class number of every image."""

    def read(self, number: int) -> bytes:
        """Return the encoded image."""

    def pixels(self, number: int, channels: int) -> np.ndarray:
        """Return pixels (H, W, ``channels``) in uint8."""

    def facts(self, number: int) -> ImageFacts:
        """Return the properties of an image that need no decoding."""

    def size(self, number: int) -> int:
        """Return the bytes of the encoded image; of an array those of its pixels, a bound in practice."""

    def origin(self, number: int) -> str:
        """Return where an image comes from, for error messages."""

    def identity(self, number: int) -> str:
        """Return a text that tells the image from others wherever its source is, cheaply."""


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
    """How a source is read."""

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
    """Return the folder of an original file, after downloading it if it is not there yet.

    Raises:
        ShardError: no network, or a damaged download.
    """
    from torchvision.datasets.utils import download_url  # imports torch: only needed here

    folder = data_home() / "downloads"
    try:
        download_url(url, str(folder), url.rsplit("/", 1)[-1], md5)
    except (OSError, RuntimeError) as error:
        raise ShardError(
            f"cannot download {source} ({error}): get {url} on a machine with a network "
            f"and pass its folder on: dist-prune shards make {source} FOLDER --out DIR"
        ) from error
    return folder


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
        raise ShardError(f"{owner} has its own test images: leave out --test_fraction")
