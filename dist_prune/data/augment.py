"""Random changes of whole batches at once; only the policies of torchvision go image by image.

All take what is random as numbers from [0, 1), so they are functions of their arguments.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


def padded_crops(pixels: np.ndarray, padding: int, draws: np.ndarray) -> np.ndarray:
    """Add ``padding`` black pixels on every side of (B, H, W, C) and cut the size out again; draws (B, 2)."""
    count, height, width, channels = pixels.shape
    padded = np.zeros((count, height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[:, padding : padding + height, padding : padding + width] = pixels
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    top, left = (draws * (2 * padding + 1)).astype(np.int64).T
    return np.ascontiguousarray(windows[np.arange(count), top, left].transpose(0, 2, 3, 1))


def flip(pixels: np.ndarray, draws: np.ndarray) -> None:
    """Mirror about half of (B, H, W, C) from left to right, in place; draws (B,)."""
    chosen = np.flatnonzero(draws < 0.5)
    images = pixels[chosen]
    for channel in range(pixels.shape[-1]):  # three times as fast as mirroring pixels of three bytes
        pixels[chosen, ..., channel] = images[:, :, ::-1, channel]


def apply_policy(pixels: np.ndarray, policy: str, seeds: Sequence[int]) -> None:
    """Change each image of (B, H, W, C) by one of ``POLICIES``, in place; a seed for each."""
    change = POLICIES[policy]()
    with torch.random.fork_rng(devices=()):  # the policies know the global generator only
        for image, seed in zip(pixels, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            changed = change(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))
            image[...] = np.asarray(changed).reshape(image.shape)


def cutout(pixels: np.ndarray, side: int, fill: np.ndarray, draws: np.ndarray) -> None:
    """Fill a square of each image of (B, H, W, C), in place, as far as it lies inside; draws (B, 2).

    Its center may be any pixel (arXiv 1708.04552); ``fill`` (C,) is uint8.
    """
    inside = []
    for length, center in zip(pixels.shape[1:3], draws.T, strict=True):
        begin = (center * length).astype(np.int64)[:, None] - side // 2
        places = np.arange(length)
        inside.append((begin <= places) & (places < begin + side))
    pixels[inside[0][:, :, None] & inside[1][:, None, :]] = fill


def mixup(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Keep ``share`` of every image and target and add the rest from the next one (arXiv 1710.09412)."""
    return images.lerp(images.roll(-1, 0), 1 - share), targets.lerp(targets.roll(-1, 0), 1 - share)


def cutmix(images: Tensor, targets: Tensor, share: float, draws: np.ndarray) -> tuple[Tensor, Tensor]:
    """Replace a part of all (B, H, W, C) by that of the next image (arXiv 1905.04899); draws (2,): its center.

    The part has the image's proportions and 1 - ``share`` of its area; what lies outside is dropped, and
    targets (B, classes) follow the area that remains.
    """
    height, width = images.shape[1:3]
    part = (1 - share) ** 0.5
    top, bottom = _around(draws[0] * height, part * height, height)
    left, right = _around(draws[1] * width, part * width, width)
    mixed = images.clone()
    mixed[:, top:bottom, left:right] = images.roll(-1, 0)[:, top:bottom, left:right]
    replaced = (bottom - top) * (right - left) / (height * width)
    return mixed, targets.lerp(targets.roll(-1, 0), replaced)


def _around(center: float, length: float, limit: int) -> tuple[int, int]:
    begin = round(center - length / 2)
    return max(0, begin), min(limit, begin + round(length))
