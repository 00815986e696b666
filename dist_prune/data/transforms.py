"""From stored images to the pixels of a batch: the transforms in their order."""

import functools

import numpy as np

from data_tools import ShardError, ShardIndex
from data_tools.images import ImageError
from dist_prune.config import AugmentConfig
from dist_prune.data.augment import apply_policy, cutout, flip, padded_crops
from dist_prune.data.batch_rng import BatchRng
from dist_prune.data.decode import CROP_COLUMNS, Box, Size, center_box, decode_part, random_box, resize

EVAL_MARGIN = 256 / 224  # photographs are scaled to this much more than is cut from their center


class ImageTransform:
    """Turns stored images into the pixels of a batch: ``prepare`` each, stack, ``augment``.

    Images of one size stay as they are, or are scaled to ``image_size`` if that differs. Photographs
    (images of different sizes, or trained with random resized crops) are scaled with a margin and cut
    from the center. ``training`` adds the augmentation.
    """

    def __init__(self, index: ShardIndex, image_size: int | None, augment: AugmentConfig, training: bool) -> None:
        self.size = output_size(index, image_size)
        self.channels = index.channels
        self._augment = augment if training else AugmentConfig()
        whole = resized_side(index, image_size, augment) is None
        self._stored = Size(*index.image_shape[1:]) if index.image_shape and whole else None
        self._fill = np.round(255 * np.array(index.mean)).astype(np.uint8)

    def crops(self, rng: BatchRng) -> np.ndarray:
        """Return the random numbers that ``prepare`` needs for each image, (B, columns)."""
        return rng.of_rows("resized crop", CROP_COLUMNS if self._augment.random_resized_crop else 0)

    def prepare(self, image: bytes | np.ndarray, crop: np.ndarray) -> np.ndarray:
        """Return pixels (H, W, C), uint8, of the output size; ``image`` is encoded, or (H, W, C) as well.

        Raises:
            ImageError: it cannot be decoded, or has not the size that the index gives.
        """
        box_of = functools.partial(self._box, crop=crop)
        if isinstance(image, bytes):
            return decode_part(image, self.channels, self.size, box_of)
        height, width, channels = image.shape
        if channels != self.channels:
            raise ImageError(f"the image has {channels} channels where the index says {self.channels}")
        box = box_of(Size(height, width))
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
        return part if part.shape[:2] == self.size else resize(part.copy(), self.size)

    def _box(self, image: Size, crop: np.ndarray) -> Box:
        """Choose the part of an image of this size that is read."""
        if self._augment.random_resized_crop:
            return random_box(image, crop)
        if self._stored is None:
            return center_box(image, self.size, EVAL_MARGIN)
        if image != self._stored:
            raise ImageError(f"the image is {_shown(image)} pixels where the index says {_shown(self._stored)}")
        return center_box(image, self.size, 1.0)

    def augment(self, pixels: np.ndarray, rng: BatchRng) -> np.ndarray:
        """Augment the images of ``rng``, (B, H, W, C), uint8, perhaps in place."""
        chosen = self._augment
        if chosen.crop_padding:
            pixels = padded_crops(pixels, chosen.crop_padding, rng.of_rows("padded crop", 2))
        if chosen.flip:
            flip(pixels, rng.of_rows("flip", 1)[:, 0])
        if chosen.policy != "none":
            apply_policy(pixels, chosen.policy, rng.seeds_of_rows("policy"))
        if chosen.cutout:
            cutout(pixels, chosen.cutout, self._fill, rng.of_rows("cutout", 2))
        return pixels


def output_size(index: ShardIndex, image_size: int | None) -> Size:
    """Return the size of the images of a batch.

    Raises:
        ShardError: the images differ in size and no size was chosen, or it is less than 1.
    """
    if image_size is not None:
        if image_size < 1:
            raise ShardError(f"image_size is {image_size}: expected a number of pixels from 1 up")
        return Size(image_size, image_size)
    if index.image_shape is None:
        raise ShardError(f"the images of {index.name} differ in size: choose an image_size, for example 224")
    return Size(*index.image_shape[1:])


def resized_side(index: ShardIndex, image_size: int | None, augment: AugmentConfig) -> int | None:
    """Return to how many pixels the shorter side of photographs is scaled in evaluation, before the center is cut.

    None: images are taken as a whole.
    """
    if index.image_shape and not augment.random_resized_crop:
        return None
    return round(min(output_size(index, image_size)) * EVAL_MARGIN)


def _shown(size: Size) -> str:
    return f"{size.width} x {size.height}"
