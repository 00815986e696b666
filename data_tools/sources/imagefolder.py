"""Sources that are trees of image files, copied byte for byte: any image folder, and Tiny-ImageNet."""

import re
from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction
from data_tools.sources.folders import list_classes, list_labelled, list_tree, read_lines, read_titles, subfolders

TEST_FOLDERS = ("test", "val", "validation")
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_INSIDE = "tiny-imagenet-200"
TINY_CLASSES = "wnids.txt"


class ImageFolder(RawDataset):
    """JPEG and PNG files as train/CLASS/IMAGE and test/CLASS/IMAGE (or val/); classes are sorted by name."""

    is_dataset = False

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """List the images; ``options.test_fraction`` divides a tree that has no test folder."""
        if folder is None:
            raise ShardError("imagefolder needs a folder: dist-prune shards make imagefolder FOLDER --out DIR")
        if not folder.is_dir():
            raise ShardError(f"no such folder: {folder}")
        root = _find_root(folder.resolve())
        found = [name for name in TEST_FOLDERS if (root / name).is_dir()]
        if len(found) > 1:
            raise ShardError(f"{root} holds {' and '.join(found)}: rename all but the one to test with")
        classes, train, test = list_tree(root, found[0] if found else None, options)
        # The name of the folder is the first part of the names of shards.
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", root.name).strip("_") or "images"
        return RawData(name, tuple(classes), {"train": train, "test": test})


def _find_root(folder: Path) -> Path:
    """Return the folder that holds train/: this one, or the only one inside it."""
    if (folder / "train").is_dir():
        return folder
    inside = subfolders(folder)
    if len(inside) == 1 and (folder / inside[0] / "train").is_dir():
        return folder / inside[0]
    raise ShardError(f"no train/ in {folder}: expected train/CLASS/*.jpg and test/CLASS/*.jpg (or val/)")


class TinyImageNet(RawDataset):
    """64x64 images of WordNet ids in the order of ``wnids.txt``; ``val``, which a list labels, is for testing."""

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """List the images in ``folder``, which holds ``wnids.txt`` or a ``tiny-imagenet-200`` that does."""
        refuse_test_fraction(options.test_fraction, "tiny-imagenet")
        if folder is None:
            raise ShardError(
                f"tiny-imagenet needs its files: get and unpack {TINY_URL}, then "
                f"dist-prune shards make tiny-imagenet PATH/{TINY_INSIDE} --out DIR"
            )
        root = next((at for at in (folder, folder / TINY_INSIDE) if (at / TINY_CLASSES).is_file()), None)
        if root is None:
            raise ShardError(
                f"no {TINY_CLASSES} in {folder}: expected the folder {TINY_INSIDE}, unpacked from {TINY_URL}"
            )
        classes = read_lines(root / TINY_CLASSES)
        # A line of the list holds an image, its class, and a box.
        annotations = root / "val" / "val_annotations.txt"
        rows = [line.split() for line in read_lines(annotations)]
        if any(len(row) < 2 for row in rows):
            raise ShardError(f"{annotations} is damaged: expected an image and its class in every line")
        wnids = {Path(row[0]).stem: row[1] for row in rows}
        train = list_classes(root, [f"train/{wnid}/images" for wnid in classes])
        test = list_labelled(root, "val/images", wnids, classes)
        titles = read_titles(root / "words.txt", classes)
        return RawData("tiny-imagenet", tuple(classes), {"train": train, "test": test}, titles)
