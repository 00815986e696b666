"""ImageNet (ILSVRC 2012) in every form it comes in: original tars, extracted tree, parquet files."""

from pathlib import Path

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction
from data_tools.sources.folders import class_folders, list_classes, list_labelled, read_titles, subfolders
from data_tools.sources.imagefolder import divide, list_test
from data_tools.sources.imagenet_lists import DEVKIT_ARCHIVE, find_val_lists
from data_tools.sources.imagenet_tars import TRAIN_TAR, VAL_TAR, read_tars
from data_tools.sources.parquet import find_parquet, read_parquet

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
            return read_tars(folder, options.progress)
        if find_parquet(folder):
            return read_parquet("imagenet", folder, options)
        raise ShardError(f"no ImageNet in {folder}: expected {FORMS}")


def _read_tree(root: Path, options: ReadOptions) -> RawData:
    """List train/WNID, and val/WNID or a flat val; without val, some of train is set aside on request."""
    # Kaggle's lists lie three folders above the images.
    places = [root, *root.parents[:3]]
    classes = class_folders(root / "train")
    train = list_classes(root, [f"train/{name}" for name in classes])
    if not (root / "val").is_dir():
        train, test = divide(train, options.test_fraction)
    else:
        refuse_test_fraction(options.test_fraction, str(root))
        if subfolders(root / "val"):
            test = list_test(root, "val", classes)
        else:
            test = list_labelled(root, "val", find_val_lists(places).wnids, classes)
    mapping = next((place / TITLES for place in places if (place / TITLES).is_file()), root / TITLES)
    return RawData("imagenet", tuple(classes), {"train": train, "test": test}, read_titles(mapping, classes))
