"""Images in files of their own, and the lists that come with them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import EncodedSplit
from data_tools.sources.tree import images_below


@dataclass(frozen=True)
class FileSplit(EncodedSplit):
    """Images in files: paths relative to ``root``."""

    root: Path
    paths: Sequence[str]
    labels: Sequence[int]

    def read(self, number: int) -> bytes:
        """Read one file as it is."""
        path = self.root / self.paths[number]
        try:
            return path.read_bytes()
        except OSError as error:
            raise ShardError(f"cannot read {path}: {error.strerror}") from error

    def size(self, number: int) -> int:
        """Return the bytes of the file."""
        path = self.root / self.paths[number]
        try:
            return path.stat().st_size
        except OSError as error:
            raise ShardError(f"cannot read {path}: {error.strerror}") from error

    def origin(self, number: int) -> str:
        """Name the file."""
        return str(self.root / self.paths[number])

    def identity(self, number: int) -> str:
        """Return path and size: reading all files to compare them would take as long as writing them."""
        return f"{self.paths[number]}:{self.size(number)}"

    def take(self, numbers: Sequence[int]) -> "FileSplit":
        """Return the split made of the images with these numbers."""
        return FileSplit(self.root, [self.paths[n] for n in numbers], [self.labels[n] for n in numbers])


def list_classes(root: Path, folders: Iterable[str]) -> FileSplit:
    """List the images below folders relative to ``root``, one of each class in order, sorted by path.

    Raises:
        ShardError: a folder is missing or without images; an image of a format that cannot be used.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(images_below(root / folder))
        if not found:
            raise ShardError(f"no images in {root / folder}: expected JPEG or PNG files")
        paths += [os.path.relpath(path, root) for path in found]
        labels += [label] * len(found)
    return FileSplit(root, paths, labels)


def list_labelled(root: Path, folder: str, wnids: Mapping[str, str], classes: Sequence[str]) -> FileSplit:
    """List the images of one folder; ``wnids`` gives the class of each by its file name without extension.

    Raises:
        ShardError: an image without a class, or one of a class that is none of ``classes``.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    paths = [os.path.relpath(path, root) for path in sorted(images_below(root / folder))]
    if not paths:
        raise ShardError(f"no images in {root / folder}: expected JPEG or PNG files")
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
