"""SVHN from its original MATLAB files."""

from pathlib import Path

import numpy as np

from data_tools.errors import ShardError
from data_tools.sources.base import (
    RawData,
    RawDataset,
    RawSplit,
    ReadOptions,
    download,
    refuse_test_fraction,
)
from data_tools.sources.splits import ArraySplit

URL = "http://ufldl.stanford.edu/housenumbers"
FILES = {
    "train": ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
    "test": ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
}
CLASSES = 10


class Svhn(RawDataset):
    """House numbers: 73,257 digits to train on and 26,032 to test with, 32x32 RGB; without the extra set."""

    arrays = True

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Read the two files in ``folder``, or download them."""
        refuse_test_fraction(options.test_fraction, "svhn")
        splits: dict[str, RawSplit] = {}
        for split, (name, md5) in FILES.items():
            found = folder if folder is not None else download("svhn", f"{URL}/{name}", md5)
            splits[split] = _read_split(split, found / name)
        return RawData("svhn", tuple(str(digit) for digit in range(CLASSES)), splits)


def _read_split(split: str, path: Path) -> ArraySplit:
    from scipy.io import loadmat  # slow to import, and only needed here

    if not path.is_file():
        raise ShardError(f"no {path.name} in {path.parent}: get {URL}/{path.name}")
    try:
        content = loadmat(path, variable_names=["X", "y"])
        pixels, labels = content["X"], content["y"].ravel()
    except Exception as error:  # scipy has no common error for damaged files
        raise ShardError(f"cannot read {path}: {error!r}; get it again from {URL}") from error
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise ShardError(f"{path} is damaged: expected 32x32 RGB pixels and one label for each image")
    if not len(labels) or not set(np.unique(labels).tolist()) <= set(range(CLASSES + 1)):
        raise ShardError(f"{path} is damaged: expected labels from 1 to 10")
    # The images stand in the last dimension, and the digit 0 is called 10.
    images = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
    return ArraySplit(f"svhn {split}", images, (labels.astype(int) % CLASSES).tolist())
