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
        self._see_size([facts.height, facts.width])
        self.all_gray = self.all_gray and facts.gray

    def measure(self, pixels: np.ndarray) -> None:
        """Count pixels (..., C) in uint8; one channel counts as three equal ones."""
        rows = pixels.reshape(-1, pixels.shape[-1])
        sums = rows.sum(axis=0, dtype=np.int64)
        squares = np.square(rows, dtype=np.int64).sum(axis=0)
        self.pixels += len(rows)
        self.sums = _add(self.sums, np.broadcast_to(sums, 3).tolist())
        self.sums_of_squares = _add(self.sums_of_squares, np.broadcast_to(squares, 3).tolist())

    def merge(self, other: "ImageStatistics") -> None:
        """Add the statistics of other images."""
        for size in other.sizes:
            self._see_size(size)
        self.all_gray = self.all_gray and other.all_gray
        self.pixels += other.pixels
        self.sums = _add(self.sums, other.sums)
        self.sums_of_squares = _add(self.sums_of_squares, other.sums_of_squares)

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

    def _see_size(self, size: list[int]) -> None:
        if len(self.sizes) < 2 and size not in self.sizes:
            self.sizes.append(size)


def _add(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
