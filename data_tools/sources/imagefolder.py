"""Any tree of the form train/CLASS/IMAGE and test/CLASS/IMAGE (or val/); files are copied byte for byte."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, refuse_test_fraction, stratified_split

EXTENSIONS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}
# Skipping these in silence would lose data; other files (lists, notes) are no images.
UNSUPPORTED = frozenset([".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"])
TEST_FOLDERS = ("test", "val", "validation")


@dataclass(frozen=True)
class FileSplit:
    """Images in files: paths relative to ``root``."""

    root: Path
    paths: Sequence[str]
    labels: Sequence[int]

    def read(self, number: int) -> tuple[bytes, str]:
        """Read one file as it is."""
        path = self.root / self.paths[number]
        try:
            return path.read_bytes(), EXTENSIONS[path.suffix.lower()]
        except OSError as error:
            raise ShardError(f"cannot read {path}: {error.strerror}") from error

    def origin(self, number: int) -> str:
        """Name the file."""
        return str(self.root / self.paths[number])

    def identity(self, number: int) -> str:
        """Return path and size: reading all files to compare them would take as long as writing them."""
        return f"{self.paths[number]}:{(self.root / self.paths[number]).stat().st_size}"

    def take(self, numbers: Sequence[int]) -> "FileSplit":
        """Return the split made of the images with these numbers."""
        return FileSplit(self.root, [self.paths[n] for n in numbers], [self.labels[n] for n in numbers])


class ImageFolder:
    """A tree of JPEG and PNG files whose folders are the classes, sorted by name."""

    is_dataset = False
    samples_per_shard = 1000

    def read(self, folder: Path | None, test_fraction: float | None) -> RawData:
        """List the images under ``folder``; ``test_fraction`` divides a tree that has no test folder."""
        if folder is None:
            raise ShardError(
                "imagefolder needs a folder: dist-prune shards make imagefolder FOLDER --out DIR"
            )
        if not folder.is_dir():
            raise ShardError(f"no such folder: {folder}")
        root = _find_root(folder.resolve())
        classes = _class_folders(root / "train")
        train = _list_images(root, "train", classes)
        test_folder = _find_test_folder(root)
        if test_folder is None:
            train, test = _divide(root, train, test_fraction)
        else:
            refuse_test_fraction(test_fraction, str(root))
            _check_same_classes(root, test_folder, classes)
            test = _list_images(root, test_folder, classes)
        return RawData(_plain_name(root.name), tuple(classes), {"train": train, "test": test})


def _find_root(folder: Path) -> Path:
    """Return the folder that holds train/: this one, or the only one inside it."""
    if (folder / "train").is_dir():
        return folder
    inside = _subfolders(folder)
    if len(inside) == 1 and (folder / inside[0] / "train").is_dir():
        return folder / inside[0]
    raise ShardError(f"no train/ in {folder}: expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)")


def _find_test_folder(root: Path) -> str | None:
    found = [name for name in TEST_FOLDERS if (root / name).is_dir()]
    if len(found) > 1:
        raise ShardError(f"{root} holds {' and '.join(found)}: rename all but the one to test with")
    return found[0] if found else None


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(folder: Path) -> list[str]:
    names = _subfolders(folder)
    if not names:
        raise ShardError(f"no class folders in {folder}: expected {folder.name}/CLASS/*.jpg")
    return names


def _check_same_classes(root: Path, test_folder: str, classes: list[str]) -> None:
    odd = sorted(set(classes) ^ set(_class_folders(root / test_folder)))
    if odd:
        has, lacks = ("train", test_folder) if odd[0] in classes else (test_folder, "train")
        raise ShardError(
            f"the classes of train and {test_folder} in {root} differ: {has} has {odd[0]!r}, {lacks} has not"
            + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else "")
        )


def _list_images(root: Path, split: str, classes: list[str]) -> FileSplit:
    """List the images of all classes, sorted by class and path; every class must have one."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images_below(root / split / name))
        if not found:
            raise ShardError(f"no images in {root / split / name}: expected .jpg, .jpeg or .png files")
        paths += [os.path.relpath(path, root) for path in found]
        labels += [label] * len(found)
    return FileSplit(root, paths, labels)


def _images_below(folder: Path) -> list[str]:
    images = []
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if extension in UNSUPPORTED:
                raise ShardError(
                    f"cannot use {os.path.join(parent, name)}: only JPEG and PNG; convert it first"
                )
            if extension in EXTENSIONS:
                images.append(os.path.join(parent, name))
    return images


def _divide(root: Path, split: FileSplit, test_fraction: float | None) -> tuple[FileSplit, FileSplit]:
    if test_fraction is None:
        raise ShardError(
            f"{root} has train/ but neither test/ nor val/: add one, "
            "or let --test_fraction 0.1 set images aside"
        )
    if not 0 < test_fraction < 1:
        raise ShardError(f"--test_fraction is {test_fraction}: expected a number between 0 and 1")
    train, test = stratified_split(split.labels, test_fraction)
    if not test:
        raise ShardError(f"--test_fraction {test_fraction} of {len(train)} images leaves none to test with")
    return split.take(train), split.take(test)


def _plain_name(name: str) -> str:
    """Turn a folder's name into the first part of shard names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "images"
