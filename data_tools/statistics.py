"""What a data set's images have in common: shape, and mean and standard deviation of their pixels."""

import numpy as np

from data_tools.images import decode_image, inspect_image

MEASURED_IMAGES = 5000
SMALLEST_STD = 1 / 255  # dividing by the deviation of a constant channel must stay finite


class ImageStatistics:
    """Looks at every image once; measures the pixels of the first ones it is told to measure."""

    def __init__(self) -> None:
        self._sizes: set[tuple[int, int]] = set()
        self._all_gray = True
        self._measured = 0
        self._pixels = 0
        self._sum = np.zeros(3)
        self._sum_of_squares = np.zeros(3)

    def add(self, data: bytes, measure: bool) -> None:
        """Check one encoded image; ``measure`` lets it count towards mean and deviation.

        Raises:
            ImageError: it cannot be decoded.
        """
        height, width, gray = inspect_image(data)
        if len(self._sizes) < 2:
            self._sizes.add((height, width))
        self._all_gray = self._all_gray and gray
        if measure and self._measured < MEASURED_IMAGES:
            # A gray image counts as three equal channels, until it turns out that all are gray.
            pixels = np.asarray(decode_image(data, 3), dtype=np.float64).reshape(-1, 3) / 255
            self._measured += 1
            self._pixels += len(pixels)
            self._sum += pixels.sum(axis=0)
            self._sum_of_squares += np.square(pixels).sum(axis=0)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) if all images have one size, else None; C is 1 if all are gray."""
        if len(self._sizes) != 1:
            return None
        height, width = next(iter(self._sizes))
        return (1 if self._all_gray else 3), height, width

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per channel, of pixels in [0, 1], rounded to 6 digits."""
        channels = self.image_shape[0] if self.image_shape else 3
        mean = self._sum / self._pixels
        variance = np.maximum(self._sum_of_squares / self._pixels - np.square(mean), 0)
        std = np.maximum(np.sqrt(variance), SMALLEST_STD)
        return tuple(mean.round(6).tolist()[:channels]), tuple(std.round(6).tolist()[:channels])
