"""Folders of image files and the lists beside them; no image is left out in silence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.splits import FileSplit

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png"])
# Skipping these in silence would lose data; other files (lists, notes) are no images.
UNSUPPORTED = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl"]
    + [".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in ``folder``.

    Raises:
        ShardError: there is none, or an image beside them.
    """
    for name in sorted(os.listdir(folder)):
        if _extension(name) in EXTENSIONS | UNSUPPORTED and (folder / name).is_file():
            raise ShardError(
                f"{folder / name} is beside the folders of the classes: move it into one of them"
            )
    names = subfolders(folder)
    if not names:
        raise ShardError(f"no class folders in {folder}: expected {folder.name}/CLASS/*.jpg")
    return names


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones.

    Raises:
        ShardError: the folder cannot be read, or a name is not UTF-8: it will be that of a class.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise ShardError(f"cannot read {folder}: {error.strerror}") from error
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ShardError(f"the name of {name!a} in {folder} is not UTF-8: rename that folder") from error
    return names


def list_classes(root: Path, folders: Iterable[str]) -> FileSplit:
    """List the images below folders relative to ``root``, one folder per class in order, sorted by path.

    Raises:
        ShardError: a folder is missing or without images; an image of a format that cannot be used.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = _images_below(root, folder)
        paths += found
        labels += [label] * len(found)
    return FileSplit(root, paths, labels)


def list_labelled(root: Path, folder: str, wnids: Mapping[str, str], classes: Sequence[str]) -> FileSplit:
    """List the images of one folder; ``wnids`` gives the class of each by its file name without extension.

    Raises:
        ShardError: an image without a class, or one of a class that is none of ``classes``.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    paths = _images_below(root, folder)
    return FileSplit(root, paths, [class_of(Path(path).stem, wnids, numbers) for path in paths])


def class_of(image: str, wnids: Mapping[str, str], numbers: Mapping[str, int]) -> int:
    """Return the class number of an image that a list gives the class of.

    Raises:
        ShardError: it is not in the list, or its class has no images to train on.
    """
    if image not in wnids:
        raise ShardError(f"no class is given for the image {image}: complete the list of classes")
    if wnids[image] not in numbers:
        raise ShardError(f"the image {image} is of class {wnids[image]}, which train has not")
    return numbers[wnids[image]]


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list, without empty ones.

    Raises:
        ShardError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ShardError(f"cannot read {path}: {error}") from error
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
                raise ShardError(
                    f"cannot use {os.path.join(parent, name)}: only JPEG and PNG; convert it first"
                )
            if extension in EXTENSIONS:
                images.append(os.path.relpath(os.path.join(parent, name), root))
    if not images:
        raise ShardError(f"no images in {root / folder}: expected JPEG or PNG files")
    return sorted(images)


def _extension(name: str) -> str:
    """Return the extension of a file in small letters; hidden files have none."""
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()


def _refuse_unreadable(error: OSError) -> None:
    """Stop at a folder that cannot be read; ``os.walk`` would skip it in silence."""
    if not isinstance(error, FileNotFoundError):  # the caller reports that there are no images
        raise ShardError(f"cannot read {error.filename}: {error.strerror}") from error
