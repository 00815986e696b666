"""A part of an encoded image, scaled to the size of a batch: decoded no larger than that needs."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from data_tools.images import load_pixels, open_image, with_channels

CROP_AREA = (0.08, 1.0)  # of the image; both as in torchvision's RandomResizedCrop
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
CROP_COLUMNS = 2 * CROP_TRIES + 2  # random numbers for one image


class Size(NamedTuple):
    """Pixels."""

    height: int
    width: int


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def decode_part(data: bytes, channels: int, size: Size, box_of: Callable[[Size], Box]) -> np.ndarray:
    """Decode the part that ``box_of`` chooses by the image's size, scaled to ``size``: (H, W, C), uint8.

    Raises:
        ImageError: empty, truncated, corrupt, or of another format.
    """
    with open_image(data) as image:
        width, height = image.size
        box = box_of(Size(height, width))
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, where the part then still fills ``size``.
        image.draft(None, (-(-width * size.width // box.width), -(-height * size.height // box.height)))
        load_pixels(image)
        left, right = (round(x * image.width / width) for x in (box.left, box.left + box.width))
        top, bottom = (round(y * image.height / height) for y in (box.top, box.top + box.height))
        part = with_channels(image.crop((left, top, right, bottom)), channels)
    return resize(np.array(part).reshape(bottom - top, right - left, channels), size)


def resize(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Scale pixels (H, W, C), uint8, bilinear and smoothed as Pillow does it, but in half the time."""
    if pixels.shape[:2] == size:
        return pixels
    images = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)  # channels_last: the fast way
    scaled = F.interpolate(images, size, mode="bilinear", antialias=True)
    return scaled.permute(0, 2, 3, 1)[0].numpy()


def center_box(image: Size, size: Size, margin: float) -> Box:
    """Return the largest central part with the proportions of ``size``, less the margin.

    Scaling that part alone is the same as scaling the image and cutting out its center.
    """
    scale = min(image.width / size.width, image.height / size.height) / margin
    width, height = max(1, round(size.width * scale)), max(1, round(size.height * scale))
    return Box((image.width - width) // 2, (image.height - height) // 2, width, height)


def random_box(image: Size, draws: np.ndarray) -> Box:
    """Choose a part as torchvision's RandomResizedCrop does, by numbers from [0, 1), (CROP_COLUMNS,)."""
    *tries, x, y = draws.tolist()
    for number, shape in zip(tries[::2], tries[1::2], strict=True):
        area = image.width * image.height * (CROP_AREA[0] + number * (CROP_AREA[1] - CROP_AREA[0]))
        aspect = CROP_ASPECT[0] * (CROP_ASPECT[1] / CROP_ASPECT[0]) ** shape
        width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = int(x * (image.width - width + 1)), int(y * (image.height - height + 1))
            return Box(left, top, width, height)
    # Very long images: the largest central part of an allowed aspect.
    aspect = min(max(image.width / image.height, CROP_ASPECT[0]), CROP_ASPECT[1])
    return center_box(image, Size(1000, round(1000 * aspect)), 1.0)
