"""Folders of image files: the names of classes, and the images below a folder, none of them left out in silence."""

import os
from pathlib import Path

from data_tools.errors import ShardError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png"])
# Skipping these in silence would lose data; other files (lists, notes) are no images.
UNSUPPORTED = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl"]
    + [".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)


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


def refuse_loose_images(folder: Path) -> None:
    """Raise a ShardError if images lie in ``folder`` itself, where folders of classes are expected."""
    for name in sorted(os.listdir(folder)):
        if _extension(name) in EXTENSIONS | UNSUPPORTED and (folder / name).is_file():
            raise ShardError(
                f"{folder / name} lies beside the folders of the classes: move it into one of them"
            )


def _extension(name: str) -> str:
    """Return the extension of a file in small letters; hidden files have none."""
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images below a folder, also behind links.

    Raises:
        ShardError: a folder cannot be read, or is met twice; an image of a format that cannot be used.
    """
    images = []
    met: dict[tuple[int, int], str] = {}
    for parent, _, names in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
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
                images.append(os.path.join(parent, name))
    return images


def _refuse_unreadable(error: OSError) -> None:
    """Stop at a folder that cannot be read; ``os.walk`` would pass over it in silence."""
    if not isinstance(error, FileNotFoundError):  # the caller says that there are no images
        raise ShardError(f"cannot read {error.filename}: {error.strerror}") from error
