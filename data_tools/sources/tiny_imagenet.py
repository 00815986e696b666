"""Tiny-ImageNet in its own layout: 64x64 images of up to 200 classes; a list labels those of val."""

from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction
from data_tools.sources.folders import list_classes, list_labelled, read_lines, read_titles

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
INSIDE = "tiny-imagenet-200"
CLASS_LIST = "wnids.txt"


class TinyImageNet(RawDataset):
    """Its classes are WordNet ids, in the order of ``wnids.txt``; ``val`` is what one tests with."""

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """List the images in ``folder``, which holds ``wnids.txt`` or a ``tiny-imagenet-200`` that does."""
        refuse_test_fraction(options.test_fraction, "tiny-imagenet")
        root = _find_root(folder)
        classes = read_lines(root / CLASS_LIST)
        wnids = _read_annotations(root / "val" / "val_annotations.txt")
        return RawData(
            name="tiny-imagenet",
            class_names=tuple(classes),
            splits={
                "train": list_classes(root, [f"train/{wnid}/images" for wnid in classes]),
                "test": list_labelled(root, "val/images", wnids, classes),
            },
            class_titles=read_titles(root / "words.txt", classes),
        )


def _find_root(folder: Path | None) -> Path:
    if folder is None:
        raise ShardError(
            f"tiny-imagenet needs its files: get and unpack {URL}, then "
            f"dist-prune shards make tiny-imagenet PATH/{INSIDE} --out DIR"
        )
    for root in (folder, folder / INSIDE):
        if (root / CLASS_LIST).is_file():
            return root
    raise ShardError(f"no {CLASS_LIST} in {folder}: expected the folder {INSIDE}, unpacked from {URL}")


def _read_annotations(path: Path) -> dict[str, str]:
    """Return the class of each image by its name without extension: a line holds both, and a box."""
    rows = [line.split() for line in read_lines(path)]
    if any(len(row) < 2 for row in rows):
        raise ShardError(f"{path} is damaged: expected an image and its class in every line")
    return {Path(row[0]).stem: row[1] for row in rows}
