"""ImageNet (ILSVRC 2012) in every distributed form: original tars, extracted tree, parquet files."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction
from data_tools.sources.folders import (
    class_folders,
    class_of,
    list_classes,
    list_labelled,
    list_tree,
    read_titles,
    subfolders,
)
from data_tools.sources.imagenet_lists import DEVKIT_ARCHIVE, ValLists, find_val_lists
from data_tools.sources.parquet import find_parquet, read_parquet
from data_tools.sources.splits import PackedSplit

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
FORMS = (
    f"{TRAIN_TAR}, {VAL_TAR} and {DEVKIT_ARCHIVE} (from https://image-net.org/download.php), the extracted "
    "tree (train/WNID and val), or data/train-*.parquet and data/validation-*.parquet "
    "(from https://huggingface.co/datasets/ILSVRC/imagenet-1k)"
)
TREES = (".", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
TITLES = "LOC_synset_mapping.txt"


class ImageNet(RawDataset):
    """Its classes are WordNet ids, sorted (of parquet files: the names in them); ``val`` is for testing."""

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """List the images of whichever form ``folder`` holds; one of the original files names its folder."""
        if folder is None:
            raise ShardError(
                "imagenet needs its files: dist-prune shards make imagenet FOLDER --out DIR, "
                f"where FOLDER holds {FORMS}"
            )
        folder = folder.parent if folder.is_file() else folder
        root = next((folder / tree for tree in TREES if (folder / tree / "train").is_dir()), None)
        if root:
            return _read_tree(root.resolve(), options)
        refuse_test_fraction(options.test_fraction, "imagenet")
        if (folder / TRAIN_TAR).is_file():
            return _read_tars(folder, options.progress)
        if find_parquet(folder):
            return read_parquet("imagenet", folder, options)
        raise ShardError(f"no ImageNet in {folder}: expected {FORMS}")


def _read_tree(root: Path, options: ReadOptions) -> RawData:
    """List train/WNID, and val/WNID or a flat val; without val, some of train is set aside on request."""
    # Kaggle's lists lie three folders above the images.
    places = [root, *root.parents[:3]]
    if (root / "val").is_dir() and not subfolders(root / "val"):
        refuse_test_fraction(options.test_fraction, str(root))
        classes = class_folders(root / "train")
        train = list_classes(root, [f"train/{name}" for name in classes])
        test = list_labelled(root, "val", find_val_lists(places).wnids, classes)
    else:
        classes, train, test = list_tree(root, "val" if (root / "val").is_dir() else None, options)
    mapping = next((place / TITLES for place in places if (place / TITLES).is_file()), root / TITLES)
    return RawData("imagenet", tuple(classes), {"train": train, "test": test}, read_titles(mapping, classes))


def _read_tars(folder: Path, progress: bool) -> RawData:
    """List the images in the two tars in ``folder``, which are read where they are, by offset."""
    lists = find_val_lists([folder])
    train, classes = _list_train(folder / TRAIN_TAR, progress)
    test = _list_val(folder / VAL_TAR, lists, classes)
    titles = tuple(lists.titles.get(wnid, wnid) for wnid in classes) if lists.titles else ()
    return RawData("imagenet", tuple(classes), {"train": train, "test": test}, titles)


def _list_train(path: Path, progress: bool) -> tuple[PackedSplit, list[str]]:
    """Return the images of a tar of tars, one of each class, in their order; and the classes, sorted."""
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
    """Open an uncompressed tar, or one that is open as a member of the tar at ``path``."""
    kinds = (tarfile.TarError, EOFError, OSError)  # also raised while the block reads it
    reading = reported(f"cannot read {path}", kinds, fix="; expected the original, uncompressed tar")
    with reading, tarfile.open(path, "r:", fileobj=inside) as tar:
        yield tar


def _files_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar, without hidden ones."""
    for member in tar:
        if member.isfile() and not os.path.basename(member.name).startswith("."):
            yield member
