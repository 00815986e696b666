"""ImageNet (ILSVRC 2012) in every distributed form: original tars, extracted tree, parquet files."""

import csv
import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data_tools.errors import ShardError, reported
from data_tools.sources import folders
from data_tools.sources.base import TAR_DAMAGES, PackedSplit, RawData, RawSplit, ReadOptions, read_archive, read_file
from data_tools.sources.parquet import find_parquet, unpack_parquet

DEVKIT = "ILSVRC2012_devkit_t12"
DEVKIT_ARCHIVE = f"{DEVKIT}.tar.gz"
GROUND_TRUTH = f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt"
META = f"{DEVKIT}/data/meta.mat"
SOLUTION = "LOC_val_solution.csv"
AGAIN = "; get it again from https://image-net.org"
TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
FORMS = (
    f"{TRAIN_TAR}, {VAL_TAR} and {DEVKIT_ARCHIVE} (from https://image-net.org/download.php), the extracted "
    "tree (train/WNID and val), or data/train-*.parquet and data/validation-*.parquet "
    "(from https://huggingface.co/datasets/ILSVRC/imagenet-1k)"
)
TREES = (".", "CLS-LOC", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")
TITLES = "LOC_synset_mapping.txt"


class _ValLists(NamedTuple):
    """``wnids``: the class of each validation image, by its name without extension; ``titles`` by class."""

    wnids: dict[str, str]
    titles: dict[str, str]


def read_imagenet(folder: Path | None, options: ReadOptions) -> RawData:
    """List the images of whichever form ``folder`` holds; one of the original files names its folder.

    The classes are WordNet ids, sorted (of parquet files: the names in them); ``val`` is for testing.
    """
    if folder is None:
        raise ShardError(
            f"imagenet needs its files: dist-prune shards make imagenet FOLDER --out DIR, where FOLDER holds {FORMS}"
        )
    folder = folder.parent if folder.is_file() else folder
    root = next((folder / tree for tree in TREES if (folder / tree / "train").is_dir()), None)
    if root:
        return _read_tree(root.resolve(), options)
    folders.refuse_test_fraction(options.test_fraction, "imagenet")
    if (folder / TRAIN_TAR).is_file():
        return _read_tars(folder, options.progress)
    if paths := find_parquet(folder):
        classes, splits = unpack_parquet(folder, paths, options)
        return RawData("imagenet", classes, folders.with_test(splits, None, folder))
    raise ShardError(f"no ImageNet in {folder}: expected {FORMS}")


def _read_tree(root: Path, options: ReadOptions) -> RawData:
    """List train/WNID, and val/WNID or a flat val; without val, some of train is set aside on request."""
    # Kaggle's lists lie three folders above the images.
    places = [root, *root.parents[:3]]
    splits: dict[str, RawSplit]
    if (root / "val").is_dir() and not folders.subfolders(root / "val"):
        folders.refuse_test_fraction(options.test_fraction, str(root))
        classes = tuple(folders.class_folders(root / "train"))
        train = folders.list_classes(root, [f"train/{name}" for name in classes])
        splits = {"train": train, "test": folders.list_labelled(root, "val", _find_val_lists(places).wnids, classes)}
    else:
        named = {"train": "train"} | ({"test": "val"} if (root / "val").is_dir() else {})
        classes, tree = folders.list_tree(root, named)
        splits = folders.with_test(tree, options.test_fraction, root)
    mapping = next((place / TITLES for place in places if (place / TITLES).is_file()), root / TITLES)
    return RawData("imagenet", classes, splits, folders.read_titles(mapping, classes))


def _read_tars(folder: Path, progress: bool) -> RawData:
    """List the images in the two tars in ``folder``, which are read where they are, by offset."""
    lists = _find_val_lists([folder])
    train, classes = _list_train(folder / TRAIN_TAR, progress)
    test = _list_val(folder / VAL_TAR, lists, classes)
    titles = tuple(lists.titles.get(wnid, wnid) for wnid in classes) if lists.titles else ()
    return RawData("imagenet", tuple(classes), {"train": train, "test": test}, titles)


def _list_train(path: Path, progress: bool) -> tuple[PackedSplit, list[str]]:
    """Return the images of a tar of tars, one of each class, in their order; and the classes, sorted."""
    with _open_tar(path) as tar:
        inner = [member for member in _files_in(tar) if member.name.endswith(".tar")]
        classes = sorted(Path(member.name).stem for member in inner)
        split = PackedSplit(open(path, "rb"))  # noqa: SIM115  open as long as the split is used
        for member in tqdm(inner, desc="listing images", unit=" classes", disable=not progress):
            label, before = classes.index(Path(member.name).stem), len(split.labels)
            with _open_tar(path, tar.extractfile(member)) as class_tar:
                for image in _files_in(class_tar):
                    offset = member.offset_data + image.offset_data
                    split.add(f"{member.name}/{image.name}", label, offset, image.size)
            if len(split.labels) == before:
                raise ShardError(f"{path} has no images in {member.name}: get it again")
    if not classes:
        raise ShardError(f"{path} holds no tars of classes: expected n01440764.tar and others")
    return split, classes


def _list_val(path: Path, lists: _ValLists, classes: list[str]) -> PackedSplit:
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    with _open_tar(path) as tar:
        split = PackedSplit(open(path, "rb"))  # noqa: SIM115  open as long as the split is used
        for image in _files_in(tar):
            label = folders.class_of(Path(image.name).stem, lists.wnids, numbers)
            split.add(image.name, label, image.offset_data, image.size)
    if not split.labels:
        raise ShardError(f"{path} holds no images: get it again")
    return split


@contextmanager
def _open_tar(path: Path, inside: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open an uncompressed tar, or one that is open as a member of the tar at ``path``."""
    # Damages also show while the block reads it.
    reading = reported(f"cannot read {path}", TAR_DAMAGES, fix="; expected the original, uncompressed tar")
    with reading, tarfile.open(path, "r:", fileobj=inside) as tar:
        yield tar


def _files_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files in a tar, without hidden ones."""
    for member in tar:
        if member.isfile() and not Path(member.name).name.startswith("."):
            yield member


def _find_val_lists(places: Sequence[Path]) -> _ValLists:
    """Read the lists from the first of these folders that has Kaggle's solution or the development kit."""
    for place in places:
        if (place / SOLUTION).is_file():
            return _ValLists(_read_solution(place / SOLUTION), {})
        if (place / DEVKIT).is_dir():
            unpack = f"; unpack {DEVKIT_ARCHIVE} again"
            return _parse_devkit(place / DEVKIT, *(read_file(place / name, unpack) for name in (META, GROUND_TRUTH)))
        if (place / DEVKIT_ARCHIVE).is_file():
            archive = place / DEVKIT_ARCHIVE
            return _parse_devkit(archive, *read_archive(archive, (META, GROUND_TRUTH), AGAIN))
    raise ShardError(
        f"the classes of the validation images are not in {places[0]}: put {DEVKIT_ARCHIVE} "
        f"(from https://image-net.org) or {SOLUTION} (from Kaggle) there"
    )


def _read_solution(path: Path) -> dict[str, str]:
    """Read lines like ``ILSVRC2012_val_00000001,n01751748 111 108 230 366``."""
    damages = (OSError, KeyError, IndexError, AttributeError, ValueError, csv.Error)
    fix = "; expected the columns ImageId and PredictionString; get it again"
    with reported(f"{path} is damaged", damages, fix), open(path, newline="", encoding="utf-8") as file:
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}


def _parse_devkit(path: Path, meta: bytes, ground_truth: bytes) -> _ValLists:
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
    return _ValLists(wnids, titles)
