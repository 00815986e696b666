"""The lists that come with ImageNet: the classes of the validation images, readable names of classes."""

import csv
import io
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_tools.errors import ShardError, reported
from data_tools.sources.arrays import read_member
from data_tools.sources.base import read_file

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_ARCHIVE = f"{DEVKIT}.tar.gz"
SOLUTION = "LOC_val_solution.csv"
GROUND_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
META = f"{DEVKIT}/data/meta.mat"
AGAIN = "; get it again from https://image-net.org"


class ValLists(NamedTuple):
    """``wnids``: the class of each validation image, by its name without extension; ``titles`` by class."""

    wnids: dict[str, str]
    titles: dict[str, str]


def find_val_lists(places: Sequence[Path]) -> ValLists:
    """Read the lists from the first of these folders that has Kaggle's solution or the development kit."""
    for place in places:
        if (place / SOLUTION).is_file():
            return ValLists(_read_solution(place / SOLUTION), {})
        if (place / DEVKIT).is_dir():
            unpack = f"; unpack {DEVKIT_ARCHIVE} again"
            meta, ground_truth = (read_file(place / name, unpack) for name in (META, GROUND_TRUTH))
            return _parse_devkit(meta, ground_truth, place / DEVKIT)
        if (place / DEVKIT_ARCHIVE).is_file():
            archive = place / DEVKIT_ARCHIVE
            damages = (tarfile.TarError, zlib.error, EOFError, OSError, KeyError)
            with reported(f"cannot read {archive}", damages, fix=AGAIN), tarfile.open(archive) as tar:
                meta, ground_truth = (read_member(tar, name) for name in (META, GROUND_TRUTH))
            return _parse_devkit(meta, ground_truth, archive)
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


def _parse_devkit(meta: bytes, ground_truth: bytes, path: Path) -> ValLists:
    """Bring together the synsets with their numbers and the number of each image, in order of names."""
    from scipy.io import loadmat  # slow to import, and only needed here

    # scipy has no common error for damaged files.
    with reported(f"the development kit in {path} is damaged", Exception, fix=AGAIN):
        synsets: Any = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        titles = {str(row["WNID"]): str(row["words"]) for row in synsets}
        numbers = [int(line) for line in ground_truth.split()]
        names = [f"ILSVRC2012_val_{place:08d}" for place in range(1, len(numbers) + 1)]
        wnids = {name: wnid_of[number] for name, number in zip(names, numbers, strict=True)}
    return ValLists(wnids, titles)
