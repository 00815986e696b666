"""Sources that are folders of images, copied byte for byte: any image folder, and Tiny-ImageNet.

One folder holds the images of one class; no image is skipped in silence.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_tools.errors import ShardError, reported
from data_tools.find import SPLITS
from data_tools.sources.base import FileSplit, RawData, RawSplit, ReadOptions, read_file, stratified_split
from data_tools.sources.metadata import find_metadata, list_labelled_files
from data_tools.sources.parquet import find_parquet, unpack_parquet

EXTENSIONS = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"])
# Skipping these in silence would lose data; other files (lists, notes) are no images.
UNSUPPORTED = frozenset(
    [".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl"] + [".pgm", ".pnm", ".ppm", ".tif", ".tiff"]
)

TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_INSIDE = "tiny-imagenet-200"
TINY_CLASSES = "wnids.txt"


def read_imagefolder(folder: Path | None, options: ReadOptions) -> RawData:
    """List JPEG, PNG and WebP files as train/CLASS/IMAGE and test/CLASS/IMAGE (or val/); classes are sorted by name.

    Images may lie deeper in the folder of their class, as for torchvision's ImageFolder. Labels may also stand in
    metadata files, and all of it in parquet files, as on the Hugging Face hub. ``options.test_fraction`` divides
    data that have nothing to test with.
    """
    if folder is None:
        raise ShardError("imagefolder needs a folder: dist-prune shards make imagefolder FOLDER --out DIR")
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    root, named = _find_root(folder.resolve())
    if metadata := find_metadata(root, list(named.values())):
        classes, splits = list_labelled_files(root, metadata)
        _refuse_unlisted(root, splits)
    elif named and subfolders(root / named["train"]):
        classes, splits = list_tree(root, named)
    elif paths := find_parquet(root):
        classes, splits = unpack_parquet(root, paths, options)
    else:
        raise ShardError(
            f"no train/ in {folder}: expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/), or metadata.csv, "
            "metadata.jsonl or *.parquet as the Hugging Face hub has them"
        )
    # The name of the folder is the first part of the names of shards.
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", root.name).strip("_") or "images"
    return RawData(name, classes, with_test(splits, options.test_fraction, root))


def _find_root(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder that holds train/, this one or the only one inside it, and its folders by split."""
    inside = subfolders(folder)
    for root in (folder, *(folder / name for name in inside if len(inside) == 1)):
        named: dict[str, str] = {}
        for name in subfolders(root):
            split = SPLITS.get(name.lower())
            if split in named:
                raise ShardError(f"{root} holds {named[split]} and {name}: rename all but one of them")
            if split:
                named[split] = name
        if "train" in named:
            return root, named
    return folder, {}


def _refuse_unlisted(root: Path, splits: Mapping[str, RawSplit]) -> None:
    """Raise a ShardError if there are images that the metadata do not name."""
    listed = {os.path.normpath(name) for split in splits.values() for name in split.names}
    if missing := sorted(set(_images_below(root, ".")) - listed):
        raise ShardError(f"{root / missing[0]} is in no metadata file: name it there, or remove it")


def read_tiny_imagenet(folder: Path | None, options: ReadOptions) -> RawData:
    """List 64x64 images in ``folder``, which holds ``wnids.txt`` or a ``tiny-imagenet-200`` that does.

    The classes are WordNet ids in the order of ``wnids.txt``; ``val``, which a list labels, is for testing.
    """
    if folder is None:
        raise ShardError(
            f"tiny-imagenet needs its files: get and unpack {TINY_URL}, then "
            f"dist-prune shards make tiny-imagenet PATH/{TINY_INSIDE} --out DIR"
        )
    root = next((at for at in (folder, folder / TINY_INSIDE) if (at / TINY_CLASSES).is_file()), None)
    if root is None:
        raise ShardError(f"no {TINY_CLASSES} in {folder}: expected the folder {TINY_INSIDE}, unpacked from {TINY_URL}")
    classes = read_lines(root / TINY_CLASSES)
    # A line of the list holds an image, its class, and a box.
    annotations = root / "val" / "val_annotations.txt"
    rows = [line.split() for line in read_lines(annotations)]
    if any(len(row) < 2 for row in rows):
        raise ShardError(f"{annotations} is damaged: expected an image and its class in every line")
    wnids = {Path(row[0]).stem: row[1] for row in rows}
    splits = {
        "train": list_classes(root, [f"train/{wnid}/images" for wnid in classes]),
        "test": list_labelled(root, "val/images", wnids, classes),
    }
    return RawData("tiny-imagenet", tuple(classes), splits, read_titles(root / "words.txt", classes))


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


def list_tree(root: Path, named: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, RawSplit]]:
    """List FOLDER/CLASS/IMAGE for the folder of each split; all must have the same classes.

    Returns:
        The names of the classes, and the splits.
    """
    train = named["train"]
    classes = class_folders(root / train)
    for folder in named.values():
        if odd := sorted(set(classes) ^ set(class_folders(root / folder))):
            has, lacks = (train, folder) if odd[0] in classes else (folder, train)
            raise ShardError(
                f"the classes of {train} and {folder} in {root} differ: {has} has {odd[0]!r}, {lacks} has not"
                + (f" (and {len(odd) - 1} more)" if len(odd) > 1 else "")
            )
    splits = {split: list_classes(root, [f"{folder}/{name}" for name in classes]) for split, folder in named.items()}
    return tuple(classes), {**splits}


def refuse_test_fraction(test_fraction: float | None, owner: str) -> None:
    """Raise a ShardError if a test fraction is requested for data that has a test split of its own."""
    if test_fraction is not None:
        raise ShardError(f"{owner} has its own test images: remove --test_fraction")


def with_test(splits: Mapping[str, RawSplit], test_fraction: float | None, owner: object) -> dict[str, RawSplit]:
    """Return train, test, and perhaps validation; images are set aside where there is nothing to test with."""
    if "train" not in splits:
        raise ShardError(f"{owner} has no images to train on, but {' and '.join(splits)}")
    if "test" not in splits and "validation" in splits:
        splits = {"train": splits["train"], "test": splits["validation"]}
    if "test" in splits:
        refuse_test_fraction(test_fraction, str(owner))
        return {name: splits[name] for name in ("train", "test", "validation") if name in splits}
    if test_fraction is None:
        raise ShardError(
            f"{owner} has train/ but neither test/ nor val/: add one, or let --test_fraction 0.1 set images aside"
        )
    if not 0 < test_fraction < 1:
        raise ShardError(f"--test_fraction is {test_fraction}: expected a number between 0 and 1")
    labels = splits["train"].labels
    chosen = stratified_split(labels, test_fraction)
    if not chosen["test"]:
        raise ShardError(f"--test_fraction {test_fraction} of {len(labels)} images leaves none to test with")
    return {name: splits["train"].part(numbers) for name, numbers in chosen.items()}


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
                raise ShardError(f"cannot use {os.path.join(parent, name)}: only JPEG, PNG and WebP; convert it first")
            if extension in EXTENSIONS:
                images.append(os.path.relpath(os.path.join(parent, name), root))
    if not images:
        raise ShardError(f"no images in {root / folder}: expected JPEG, PNG or WebP files")
    return sorted(images)


def _extension(name: str) -> str:
    """Return the extension of a file in lower case; hidden files have none."""
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()


def _refuse_unreadable(error: OSError) -> None:
    """Stop at a folder that cannot be read; ``os.walk`` would skip it in silence."""
    if not isinstance(error, FileNotFoundError):  # the caller reports that there are no images
        raise ShardError(f"cannot read {error.filename}: {error.strerror}") from error
