"""Statistics of images: common shape, and mean and standard deviation of pixels."""

import math
from dataclasses import dataclass, field

import numpy as np

from data_tools.images import ImageFacts

SMALLEST_STD = 1 / 255  # dividing by the deviation of a constant channel must stay finite


@dataclass
class ImageStatistics:
    """Statistics of some images. Those of parts, merged in any order, equal those of the whole.

    ``sizes`` are (height, width), the first two different ones. Pixels are summed over the images that
    were measured, in three channels and in integers, so that no order of addition changes a digit.
    """

    sizes: list[list[int]] = field(default_factory=list)
    all_gray: bool = True
    pixels: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    sums_of_squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def see(self, facts: ImageFacts) -> None:
        """Count the size and color of one image."""
        self.merge(ImageStatistics([[facts.height, facts.width]], facts.gray))

    def measure(self, pixels: np.ndarray) -> None:
        """Count pixels (..., C) in uint8; one channel counts as three equal ones."""
        rows = pixels.reshape(-1, pixels.shape[-1])
        sums, squares = rows.sum(axis=0, dtype=np.int64), np.square(rows, dtype=np.int64).sum(axis=0)
        three = [np.broadcast_to(values, 3).tolist() for values in (sums, squares)]
        self.merge(ImageStatistics([], True, len(rows), *three))

    def merge(self, other: "ImageStatistics") -> None:
        """Add the statistics of other images."""
        new = [size for size in other.sizes if size not in self.sizes]
        self.sizes = [*self.sizes, *new][:2]
        self.all_gray = self.all_gray and other.all_gray
        self.pixels += other.pixels
        self.sums = [a + b for a, b in zip(self.sums, other.sums, strict=True)]
        self.sums_of_squares = [a + b for a, b in zip(self.sums_of_squares, other.sums_of_squares, strict=True)]

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) if all images have one size, else None; C is 1 if all are gray."""
        if len(self.sizes) != 1:
            return None
        height, width = self.sizes[0]
        return (1 if self.all_gray else 3), height, width

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, of pixels in [0, 1], rounded to 6 digits."""
        channels = self.image_shape[0] if self.image_shape else 3
        mean = [total / self.pixels / 255 for total in self.sums]
        variances = [
            (self.pixels * squares - total**2) / self.pixels**2
            for total, squares in zip(self.sums, self.sums_of_squares, strict=True)
        ]
        std = [max(math.sqrt(variance) / 255, SMALLEST_STD) for variance in variances]
        return tuple(round(v, 6) for v in mean[:channels]), tuple(round(v, 6) for v in std[:channels])
