"""scikit-learn's handwritten digits: 1,797 real 8x8 gray images that come with the library."""

from pathlib import Path

import numpy as np

from data_tools.errors import ShardError
from data_tools.sources.base import RawData, RawDataset, ReadOptions, refuse_test_fraction, stratified_split
from data_tools.sources.splits import ArraySplit

TEST_SAMPLES = 360
BRIGHTEST = 16  # the values are 0..16


class Digits(RawDataset):
    """The embedded data set: 1,437 images to train on and 360 to test with, always the same ones."""

    arrays = True
    samples_per_shard = 360

    def read(self, folder: Path | None, options: ReadOptions) -> RawData:
        """Load the images from the installed scikit-learn; takes neither a folder nor a test fraction."""
        if folder is not None:
            raise ShardError(f"digits comes with scikit-learn and takes no folder: leave out {folder}")
        refuse_test_fraction(options.test_fraction, "digits")
        from sklearn.datasets import load_digits  # slow to import, and only needed here

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / BRIGHTEST)).astype(np.uint8)
        labels = digits.target.astype(int)
        train, test = stratified_split(labels.tolist(), TEST_SAMPLES / len(labels))
        return RawData(
            name="digits",
            class_names=tuple(str(name) for name in digits.target_names),
            splits={
                "train": ArraySplit("digits train", pixels[train], labels[train].tolist()),
                "test": ArraySplit("digits test", pixels[test], labels[test].tolist()),
            },
        )
