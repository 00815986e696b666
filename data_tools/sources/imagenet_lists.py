"""The lists that come with ImageNet: the classes of the validation images, readable names of classes."""

import csv
import io
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.errors import ShardError

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_ARCHIVE = f"{DEVKIT}.tar.gz"
SOLUTION = "LOC_val_solution.csv"
GROUND_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
META = f"{DEVKIT}/data/meta.mat"


@dataclass(frozen=True)
class ValLists:
    """``wnids``: the class of each validation image, by its name without extension; ``titles`` by class."""

    wnids: dict[str, str]
    titles: dict[str, str]


def find_val_lists(places: Sequence[Path]) -> ValLists:
    """Read the lists from the first of these folders that has Kaggle's solution or the development kit.

    Raises:
        ShardError: none has; or one that cannot be read.
    """
    for place in places:
        if (place / SOLUTION).is_file():
            return ValLists(_read_solution(place / SOLUTION), {})
        if (place / DEVKIT).is_dir():
            return _parse_devkit(_read_file(place / META), _read_file(place / GROUND_TRUTH), place / DEVKIT)
        if (place / DEVKIT_ARCHIVE).is_file():
            return _read_devkit_archive(place / DEVKIT_ARCHIVE)
    raise ShardError(
        f"the classes of the validation images are not in {places[0]}: put {DEVKIT_ARCHIVE} "
        f"(from https://image-net.org) or {SOLUTION} (from Kaggle) there"
    )


def _read_solution(path: Path) -> dict[str, str]:
    """Read lines like ``ILSVRC2012_val_00000001,n01751748 111 108 230 366``."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    except (OSError, KeyError, IndexError, AttributeError, ValueError, csv.Error) as error:
        raise ShardError(
            f"{path} is damaged: expected the columns ImageId and PredictionString; get it again"
        ) from error


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror}; unpack {DEVKIT_ARCHIVE} again") from error


def _read_devkit_archive(path: Path) -> ValLists:
    try:
        with tarfile.open(path) as tar:
            meta, ground_truth = (_content(tar, name) for name in (META, GROUND_TRUTH))
    except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError) as error:
        raise ShardError(f"cannot read {path}: {error}; get it again from https://image-net.org") from error
    return _parse_devkit(meta, ground_truth, path)


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    stream = tar.extractfile(name)
    if stream is None:
        raise KeyError(f"{name} is not a file")
    return stream.read()


def _parse_devkit(meta: bytes, ground_truth: bytes, path: Path) -> ValLists:
    """Bring together the synsets with their numbers and the number of each image, in order of names."""
    from scipy.io import loadmat  # slow to import, and only needed here

    try:
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        titles = {str(row["WNID"]): str(row["words"]) for row in synsets}
        numbers = [int(line) for line in ground_truth.split()]
        wnids = {
            f"ILSVRC2012_val_{place:08d}": wnid_of[number] for place, number in enumerate(numbers, start=1)
        }
    except Exception as error:  # scipy has no common error for damaged files
        raise ShardError(
            f"the development kit in {path} is damaged ({error}); get it again from https://image-net.org"
        ) from error
    return ValLists(wnids, titles)
