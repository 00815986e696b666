"""ImageNet's original tars: one of train that holds one of each class, and one of all validation images."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data_tools.errors import ShardError
from data_tools.sources.base import RawData
from data_tools.sources.folders import class_of
from data_tools.sources.imagenet_lists import ValLists, find_val_lists
from data_tools.sources.splits import PackedSplit

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"


def read_tars(folder: Path, progress: bool) -> RawData:
    """List the images in the two tars in ``folder``, which are read where they are, by offset.

    Raises:
        ShardError: a tar or the development kit is missing or damaged.
    """
    lists = find_val_lists([folder])
    train, classes = _list_train(folder / TRAIN_TAR, progress)
    test = _list_val(folder / VAL_TAR, lists, classes)
    titles = tuple(lists.titles.get(wnid, wnid) for wnid in classes) if lists.titles else ()
    return RawData("imagenet", tuple(classes), {"train": train, "test": test}, titles)


def _list_train(path: Path, progress: bool) -> tuple[PackedSplit, list[str]]:
    """Return the images and the classes, which are sorted; the images stay in the order of the tar."""
    with _open_tar(path) as tar:
        inner = [member for member in _files_in(tar) if member.name.endswith(".tar")]
        classes = sorted(_stem(member.name) for member in inner)
        split = PackedSplit(open(path, "rb"))  # noqa: SIM115  open as long as the split is used
        for member in tqdm(inner, desc="listing images", unit=" classes", disable=not progress):
            label, before = classes.index(_stem(member.name)), len(split.labels)
            with _open_tar(path, tar.extractfile(member)) as class_tar:
                for image in _files_in(class_tar):
                    offset = member.offset_data + image.offset_data
                    split.add(f"{member.name}/{image.name}", label, offset, image.size)
            if len(split.labels) == before:
                raise ShardError(f"{path} has no images in {member.name}: get it again")
    if not classes:
        raise ShardError(f"{path} holds no tars of classes: expected n01440764.tar and others")
    return split, classes


def _list_val(path: Path, lists: ValLists, classes: list[str]) -> PackedSplit:
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    with _open_tar(path) as tar:
        split = PackedSplit(open(path, "rb"))  # noqa: SIM115  open as long as the split is used
        for image in _files_in(tar):
            label = class_of(_stem(image.name), lists.wnids, numbers)
            split.add(image.name, label, image.offset_data, image.size)
    if not split.labels:
        raise ShardError(f"{path} holds no images: get it again")
    return split


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


@contextmanager
def _open_tar(path: Path, inside: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar, or one that is open as a member of the tar at ``path``.

    Raises:
        ShardError: it is missing, compressed, damaged or cut off; also while the block reads it.
    """
    try:
        with tarfile.open(path, "r:", fileobj=inside) as tar:
            yield tar
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"cannot read {path}: {error}; expected the original, uncompressed tar") from error


def _files_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar, without hidden ones."""
    for member in tar:
        if member.isfile() and not os.path.basename(member.name).startswith("."):
            yield member
