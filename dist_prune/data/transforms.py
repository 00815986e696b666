"""From decoded images to a normalized batch, with explicit randomness.

What can be done to a whole batch of equal images at once (padded crops, flips, normalization) is done
so, on uint8; per image there is only what changes its size, done by Pillow while it is still uint8.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools import ShardError, ShardIndex
from data_tools.images import ImageError

CROP_AREA = (0.08, 1.0)  # of the image; both as in torchvision's RandomResizedCrop
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
EVAL_MARGIN = 256 / 224  # photographs are scaled to this much more than is cut from their centre


@dataclass(frozen=True)
class Augment:
    """What happens to training images, in this order.

    ``random_resized_crop`` cuts a random part and scales it to the image size; ``crop_padding`` adds
    so many black pixels on every side and cuts the size out again at random; ``flip`` mirrors half.
    """

    crop_padding: int = 0
    flip: bool = False
    random_resized_crop: bool = False


class ImageTransform:
    """Turns images into a batch: ``prepare`` each, stack, ``finish``.

    Images of one size stay as they are, or are scaled to ``image_size`` if that differs. Photographs
    (images of different sizes, or trained with random resized crops) are scaled with a margin and cut
    from the centre. ``training`` adds the augmentation.
    """

    def __init__(
        self, index: ShardIndex, image_size: int | None, augment: Augment, training: bool, channels_last: bool
    ) -> None:
        self.height, self.width = output_size(index, image_size)
        self._augment = augment if training else Augment()
        fits = index.image_shape is not None and index.image_shape[1:] == (self.height, self.width)
        self._keep = fits and not self._augment.random_resized_crop
        photographs = index.image_shape is None or augment.random_resized_crop
        self._margin = EVAL_MARGIN if photographs else 1.0
        std = torch.tensor(index.std).view(-1, 1, 1)
        self._scale = 1 / (255 * std)
        self._shift = -torch.tensor(index.mean).view(-1, 1, 1) / std
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def prepare(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return pixels (H, W, C), uint8, of the output size.

        Raises:
            ImageError: the image has not the size that the index gives.
        """
        size = (self.width, self.height)
        if self._keep:
            if image.size != size:
                raise ImageError(f"the image is {image.size} pixels where the index says {size}")
        else:
            crops = self._augment.random_resized_crop
            box = _random_box(image, rng) if crops else _centre_box(image, size, self._margin)
            image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    def finish(self, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Augment and normalize stacked pixels (B, H, W, C) to float32 (B, C, H, W)."""
        if self._augment.crop_padding:
            pixels = _padded_crops(pixels, self._augment.crop_padding, rng)
        if self._augment.flip:
            chosen = rng.random(len(pixels)) < 0.5
            pixels[chosen] = pixels[chosen, :, ::-1]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        images = images.to(torch.float32, memory_format=self._format)
        return images.mul_(self._scale).add_(self._shift)


def output_size(index: ShardIndex, image_size: int | None) -> tuple[int, int]:
    """Return (height, width) of the images of a batch.

    Raises:
        ShardError: the images differ in size and no size was chosen, or it is less than 1.
    """
    if image_size is not None:
        if image_size < 1:
            raise ShardError(f"image_size is {image_size}: expected a number of pixels from 1 up")
        return image_size, image_size
    if index.image_shape is None:
        raise ShardError(f"the images of {index.name} differ in size: choose an image_size, for example 224")
    return index.image_shape[1:]


def _padded_crops(pixels: np.ndarray, padding: int, rng: np.random.Generator) -> np.ndarray:
    count, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    places = rng.integers(2 * padding + 1, size=(count, 2)).tolist()
    for number, (top, left) in enumerate(places):
        pixels[number] = padded[number, top : top + height, left : left + width]
    return pixels


_Box = tuple[float, float, float, float]


def _centre_box(image: Image.Image, size: tuple[int, int], margin: float) -> _Box:
    """Return the largest central part with the proportions of ``size``, less the margin.

    Scaling that part alone is the same as scaling the image and cutting out its centre.
    """
    scale = min(image.width / size[0], image.height / size[1]) / margin
    width, height = size[0] * scale, size[1] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return left, top, left + width, top + height


def _random_box(image: Image.Image, rng: np.random.Generator) -> _Box:
    """Draw a part of the image as torchvision's RandomResizedCrop does."""
    for _ in range(CROP_TRIES):
        area = image.width * image.height * rng.uniform(*CROP_AREA)
        aspect = np.exp(rng.uniform(*np.log(CROP_ASPECT)))
        width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(rng.integers(image.width - width + 1))
            top = int(rng.integers(image.height - height + 1))
            return left, top, left + width, top + height
    # Very long images: the largest central part of an allowed aspect.
    aspect = min(max(image.width / image.height, CROP_ASPECT[0]), CROP_ASPECT[1])
    return _centre_box(image, (round(1000 * aspect), 1000), 1.0)
