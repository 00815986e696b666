"""Any tree of the form train/CLASS/IMAGE and test/CLASS/IMAGE (or val/); files are copied byte for byte."""

import re
from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction, stratified_split
from data_tools.sources.folders import class_folders, list_classes, subfolders
from data_tools.sources.splits import FileSplit

TEST_FOLDERS = ("test", "val", "validation")


class ImageFolder(RawDataset):
    """A tree of JPEG and PNG files whose folders are the classes, sorted by name."""

    is_dataset = False

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """List the images; ``options.test_fraction`` divides a tree that has no test folder."""
        if folder is None:
            raise ShardError(
                "imagefolder needs a folder: dist-prune shards make imagefolder FOLDER --out DIR"
            )
        if not folder.is_dir():
            raise ShardError(f"no such folder: {folder}")
        root = _find_root(folder.resolve())
        classes = class_folders(root / "train")
        train = list_classes(root, [f"train/{name}" for name in classes])
        test_folder = _find_test_folder(root)
        if test_folder is None:
            train, test = divide(train, options.test_fraction)
        else:
            refuse_test_fraction(options.test_fraction, str(root))
            test = list_test(root, test_folder, classes)
        return RawData(_plain_name(root.name), tuple(classes), {"train": train, "test": test})


def list_test(root: Path, test_folder: str, classes: list[str]) -> FileSplit:
    """List the images of the test folder, which must have the classes of train."""
    odd = sorted(set(classes) ^ set(class_folders(root / test_folder)))
    if odd:
        has, lacks = ("train", test_folder) if odd[0] in classes else (test_folder, "train")
        raise ShardError(
            f"the classes of train and {test_folder} in {root} differ: {has} has {odd[0]!r}, {lacks} has not"
            + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else "")
        )
    return list_classes(root, [f"{test_folder}/{name}" for name in classes])


def divide(split: FileSplit, test_fraction: float | None) -> tuple[FileSplit, FileSplit]:
    """Set images aside for testing, where there is no test folder."""
    if test_fraction is None:
        raise ShardError(
            f"{split.root} has train/ but neither test/ nor val/: add one, "
            "or let --test_fraction 0.1 set images aside"
        )
    if not 0 < test_fraction < 1:
        raise ShardError(f"--test_fraction is {test_fraction}: expected a number between 0 and 1")
    train, test = stratified_split(split.labels, test_fraction)
    if not test:
        raise ShardError(f"--test_fraction {test_fraction} of {len(train)} images leaves none to test with")
    return split.take(train), split.take(test)


def _find_root(folder: Path) -> Path:
    """Return the folder that holds train/: this one, or the only one inside it."""
    if (folder / "train").is_dir():
        return folder
    inside = subfolders(folder)
    if len(inside) == 1 and (folder / inside[0] / "train").is_dir():
        return folder / inside[0]
    raise ShardError(f"no train/ in {folder}: expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)")


def _find_test_folder(root: Path) -> str | None:
    found = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if len(found) > 1:
        raise ShardError(f"{root} holds {' and '.join(found)}: rename all but the one to test with")
    return found[0] if found else None


def _plain_name(name: str) -> str:
    """Turn the name of a folder into the first part of shard names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "images"
