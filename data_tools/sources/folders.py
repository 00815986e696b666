"""Folders of image files, one folder for each class, and the lists beside them; no image is skipped in silence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_tools.errors import ShardError, reported
from data_tools.sources.base import ReadOptions, read_file, refuse_test_fraction, stratified_split
from data_tools.sources.splits import FileSplit

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png"])
# Skipping these in silence would lose data; other files (lists, notes) are no images.
UNSUPPORTED = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl"] + [".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in ``folder``, which must hold no image beside them."""
    for name in sorted(os.listdir(folder)):
        if _extension(name) in EXTENSIONS | UNSUPPORTED and (folder / name).is_file():
            raise ShardError(f"{folder / name} is beside the folders of the classes: move it into one of them")
    names = subfolders(folder)
    if not names:
        raise ShardError(f"no class folders in {folder}: expected {folder.name}/CLASS/*.jpg")
    return names


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    with reported(f"cannot read {folder}"), os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for name in names:  # each will be that of a class, in JSON
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ShardError(f"the name of {name!a} in {folder} is not UTF-8: rename that folder") from error
    return names


def list_tree(root: Path, test_folder: str | None, options: ReadOptions) -> tuple[list[str], FileSplit, FileSplit]:
    """List train/CLASS/IMAGE and the same below ``test_folder``; without one, set images of train aside.

    Returns:
        The names of the classes, the split to train on, the split to test with.
    """
    classes = class_folders(root / "train")
    train = list_classes(root, [f"train/{name}" for name in classes])
    if test_folder is None:
        return classes, *_divide(train, options.test_fraction)
    refuse_test_fraction(options.test_fraction, str(root))
    odd = sorted(set(classes) ^ set(class_folders(root / test_folder)))
    if odd:
        has, lacks = ("train", test_folder) if odd[0] in classes else (test_folder, "train")
        raise ShardError(
            f"the classes of train and {test_folder} in {root} differ: {has} has {odd[0]!r}, {lacks} has not"
            + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else "")
        )
    return classes, train, list_classes(root, [f"{test_folder}/{name}" for name in classes])


def _divide(split: FileSplit, test_fraction: float | None) -> tuple[FileSplit, FileSplit]:
    """Set images aside for testing, where there is no test folder."""
    if test_fraction is None:
        raise ShardError(
            f"{split.root} has train/ but neither test/ nor val/: add one, or let --test_fraction 0.1 set images aside"
        )
    if not 0 < test_fraction < 1:
        raise ShardError(f"--test_fraction is {test_fraction}: expected a number between 0 and 1")
    train, test = stratified_split(split.labels, test_fraction)
    if not test:
        raise ShardError(f"--test_fraction {test_fraction} of {len(train)} images leaves none to test with")
    return split.take(train), split.take(test)


def list_classes(root: Path, folders: Iterable[str]) -> FileSplit:
    """List the images below folders relative to ``root``, one folder per class in order, sorted by path."""
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _images_below(root, folder)
        paths += found
        labels += [label] * len(found)
    return FileSplit(root, paths, labels)


def list_labelled(root: Path, folder: str, wnids: Mapping[str, str], classes: Sequence[str]) -> FileSplit:
    """List the images of one folder; ``wnids`` gives the class of each by its file name without extension."""
    numbers = {name: number for number, name in enumerate(classes)}
    paths = _images_below(root, folder)
    return FileSplit(root, paths, [class_of(Path(path).stem, wnids, numbers) for path in paths])


def class_of(image: str, wnids: Mapping[str, str], numbers: Mapping[str, int]) -> int:
    """Return the class number of an image whose class ``wnids`` gives; its class must have training images."""
    if image not in wnids:
        raise ShardError(f"no class is given for the image {image}: complete the list of classes")
    if wnids[image] not in numbers:
        raise ShardError(f"the image {image} is of class {wnids[image]}, which train has not")
    return numbers[wnids[image]]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list, without empty ones."""
    with reported(f"cannot read {path}", ValueError):
        lines = read_file(path).decode().splitlines()
    return [line.strip() for line in lines if line.strip()]


def read_titles(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return a readable title for each name from a list with a name and its title a line.

    Nothing if there is no list; a name that is not in it is its own title.
    """
    if not path.is_file():
        return ()
    titles = dict(line.split(maxsplit=1) for line in read_lines(path) if len(line.split()) > 1)
    return tuple(titles.get(name, name) for name in names)


def _images_below(root: Path, folder: str) -> list[str]:
    """Return the paths, relative to ``root``, of all images below a folder of it, also behind links; sorted."""
    images = []
    met: dict[tuple[int, int], str] = {}
    for parent, _, names in os.walk(root / folder, followlinks=True, onerror=_refuse_unreadable):
        state = os.stat(parent)
        first = met.setdefault((state.st_dev, state.st_ino), parent)
        if first != parent:
            raise ShardError(f"{parent} leads to {first} once more: its images would come twice; remove it")
        for name in names:
            extension = _extension(name)
            if extension in UNSUPPORTED:
                raise ShardError(f"cannot use {os.path.join(parent, name)}: only JPEG and PNG; convert it first")
            if extension in EXTENSIONS:
                images.append(os.path.relpath(os.path.join(parent, name), root))
    if not images:
        raise ShardError(f"no images in {root / folder}: expected JPEG or PNG files")
    return sorted(images)


def _extension(name: str) -> str:
    """Return the extension of a file in lower case; hidden files have none."""
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()


def _refuse_unreadable(error: OSError) -> None:
    """Stop at a folder that cannot be read; ``os.walk`` would skip it in silence."""
    if not isinstance(error, FileNotFoundError):  # the caller reports that there are no images
        raise ShardError(f"cannot read {error.filename}: {error.strerror}") from error
