"""From stored images to a normalized batch: decode and scale each, augment the batch, finish it on the device."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_tools import ShardError, ShardIndex
from data_tools.images import UPRIGHT, ImageError, Orientation, load_pixels, open_image, orientation_of, with_channels
from dist_prune.config import AugmentConfig
from dist_prune.data.augment import apply_policy, cutmix, cutout, flip, mixup, padded_crops
from dist_prune.data.batch_rng import BatchRng

CROP_AREA = 0.08  # of the image, at least; both as in torchvision's RandomResizedCrop
CROP_ASPECT = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 0.33)  # of the image; both as in torchvision's RandomErasing (arXiv 1708.04896)
ERASED_ASPECT = (0.3, 3.3)
CROP_TRIES = 10
CROP_COLUMNS = 2 * CROP_TRIES + 2  # random numbers for one image
EVAL_CROP = 224 / 256  # share of the side of photographs that evaluation keeps, unless the recipe says otherwise


class Batch(NamedTuple):
    """Training or test images on the device, (views * B, C, H, W), float32, view after view.

    labels: (B,), int64, or probabilities (B, classes) where images are mixed. samples: the number of each image in its
    split, (B,), int64, on the CPU; None in stream order.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor | None = None


class Size(NamedTuple):
    """Pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def decode_part(
    data: bytes, channels: int, size: Size, box_of: Callable[[Size], Box], interpolation: str = "bilinear"
) -> np.ndarray:
    """Decode the part that ``box_of`` chooses by the image's size, scaled to ``size``: (H, W, C), uint8.

    Raises:
        ImageError: empty, truncated, corrupt, or of another format.
    """
    with open_image(data) as image:
        width, height = image.size
        orientation = orientation_of(image)
        # Of the image as it is stored, which may lie on its side.
        box = _stored_box(box_of, Size(height, width), orientation)
        stored = Size(*size[::-1]) if orientation.transpose else size
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, where the part then still fills ``size``.
        image.draft(None, (-(-width * stored.width // box.width), -(-height * stored.height // box.height)))
        load_pixels(image)
        left, right = (round(x * image.width / width) for x in (box.left, box.left + box.width))
        top, bottom = (round(y * image.height / height) for y in (box.top, box.top + box.height))
        part = with_channels(image.crop((left, top, right, bottom)), channels)
    pixels = np.array(part).reshape(bottom - top, right - left, channels)
    if orientation is not UPRIGHT:
        pixels = np.ascontiguousarray(orientation.upright(pixels))
    return resize(pixels, size, interpolation)


def _stored_box(box_of: Callable[[Size], Box], image: Size, orientation: Orientation) -> Box:
    """Return the part that is chosen of the upright image, in an image that is stored in this orientation."""
    if orientation is UPRIGHT:
        return box_of(image)
    left, top, width, height = box_of(Size(*image[::-1]) if orientation.transpose else image)
    if orientation.transpose:
        left, top, width, height = top, left, height, width
    left = image.width - left - width if orientation.mirror_x else left
    top = image.height - top - height if orientation.mirror_y else top
    return Box(left, top, width, height)


def resize(pixels: np.ndarray, size: Size, interpolation: str = "bilinear") -> np.ndarray:
    """Scale pixels (H, W, C), uint8, smoothed (bilinear or bicubic) as Pillow does it, but in half the time."""
    if pixels.shape[:2] == size:
        return pixels
    images = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)  # channels_last: the fast way
    scaled = F.interpolate(images, size, mode=interpolation, antialias=True)
    return scaled.permute(0, 2, 3, 1)[0].numpy()


def center_box(image: Size, size: Size, margin: float) -> Box:
    """Return the largest central part with the proportions of ``size``, less the margin.

    Scaling that part alone is the same as scaling the image and cutting out its center.
    """
    scale = min(image.width / size.width, image.height / size.height) / margin
    width, height = max(1, round(size.width * scale)), max(1, round(size.height * scale))
    return Box((image.width - width) // 2, (image.height - height) // 2, width, height)


def random_part(image: Size, draws: np.ndarray, areas: tuple[float, float], aspects: tuple[float, float]) -> Box | None:
    """Choose a part as torchvision's RandomResizedCrop and RandomErasing do; None if none of the tries fits.

    Args:
        image: the size of the image.
        draws: numbers from [0, 1), (CROP_COLUMNS,).
        areas: the least and the largest one, as shares of the image.
        aspects: of width to height, likewise.
    """
    *tries, x, y = draws.tolist()
    for number, shape in zip(tries[::2], tries[1::2], strict=True):
        area = image.width * image.height * (areas[0] + number * (areas[1] - areas[0]))
        aspect = aspects[0] * (aspects[1] / aspects[0]) ** shape
        width, height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = int(x * (image.width - width + 1)), int(y * (image.height - height + 1))
            return Box(left, top, width, height)
    return None


def random_box(image: Size, draws: np.ndarray, least_area: float = CROP_AREA) -> Box:
    """Choose a part of at least this share of the image, as torchvision's RandomResizedCrop does."""
    if part := random_part(image, draws, (least_area, 1.0), CROP_ASPECT):
        return part
    # Very long images: the largest central part of an allowed aspect.
    aspect = min(max(image.width / image.height, CROP_ASPECT[0]), CROP_ASPECT[1])
    return center_box(image, Size(1000, round(1000 * aspect)), 1.0)


class ImageTransform:
    """Turns stored images into the pixels of a batch: ``prepare`` each, stack, ``augment``.

    Images of one size stay as they are, or are scaled to ``image_size`` if that differs. Photographs
    (images of different sizes, or trained with random resized crops) are scaled with a margin and cut
    from the center, and in evaluation so are all images if ``eval_crop`` is given. ``training`` adds the
    augmentation.
    """

    def __init__(
        self,
        index: ShardIndex,
        image_size: int | None,
        augment: AugmentConfig,
        training: bool,
        *,
        eval_crop: float | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        self.size = output_size(index, image_size)
        self.channels = index.channels
        self._augment = augment if training else AugmentConfig()
        whole = None if augment.random_resized_crop else index.image_shape
        self._stored = Size(*whole[1:]) if whole else None
        self._interpolation = interpolation
        # Pixels to which the shorter side is scaled before the center is cut; None: images are used whole.
        is_cut = not whole or (eval_crop is not None and not training)
        self.resized_side = round(min(self.size) / (eval_crop or EVAL_CROP)) if is_cut else None
        self._margin = self.resized_side / min(self.size) if self.resized_side else 1.0
        self._fill = np.round(255 * np.array(index.mean)).astype(np.uint8)

    @property
    def keeps_whole(self) -> bool:
        """True if ``prepare`` returns every image whole, as it is stored."""
        return self._stored == self.size and self.resized_side is None

    def crops(self, rng: BatchRng) -> np.ndarray:
        """Return the random numbers that ``prepare`` needs for each image, (B, columns)."""
        return rng.of_rows("resized crop", CROP_COLUMNS if self._augment.random_resized_crop else 0)

    def prepare(self, image: bytes, crop: np.ndarray) -> np.ndarray:
        """Return pixels (H, W, C), uint8, of the output size.

        Raises:
            ImageError: it cannot be decoded, or has not the size that the index gives.
        """
        box_of = functools.partial(self._box, crop=crop)
        return decode_part(image, self.channels, self.size, box_of, self._interpolation)

    def _box(self, image: Size, crop: np.ndarray) -> Box:
        """Choose the part of an image of this size that is read."""
        if self._augment.random_resized_crop:
            return random_box(image, crop, self._augment.crop_area)
        if self._stored is not None and image != self._stored:
            raise ImageError(f"the image is {image} pixels where the index says {self._stored}")
        return center_box(image, self.size, self._margin)

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
        if chosen.erasing:
            self._erase(pixels, rng.of_rows("erasing", 1 + CROP_COLUMNS))
        return pixels

    def _erase(self, pixels: np.ndarray, draws: np.ndarray) -> None:
        """Blank a rectangle of some images, in place."""
        size = Size(*pixels.shape[1:3])
        for row in np.flatnonzero(draws[:, 0] < self._augment.erasing):
            if box := random_part(size, draws[row, 1:], ERASED_AREA, ERASED_ASPECT):
                pixels[row, box.top : box.top + box.height, box.left : box.left + box.width] = self._fill


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


class BatchTransform:
    """Turns pixels (B, H, W, C), uint8, into images (B, C, H, W), float32, on ``device``.

    Pixels travel to it as they are, a quarter of the bytes. ``width`` is that of the images, in pixels.
    """

    def __init__(
        self, index: ShardIndex, width: int, augment: AugmentConfig, channels_last: bool, device: torch.device
    ) -> None:
        self._augment = augment
        self._classes, self._channels_last, self._device = len(index.class_names), channels_last, device
        mean, std = np.array(index.mean), np.array(index.std)
        # One number for each value of a row of pixels: adding and multiplying by three numbers is slow.
        self._scale = torch.from_numpy(np.tile(1 / (255 * std), width)).float().to(device)
        self._shift = torch.from_numpy(np.tile(-mean / std, width)).float().to(device)

    def __call__(self, pixels: Tensor, labels: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """Normalize, and mix neighbors if asked for.

        pixels: of one view or several, view after view; labels (B,), int64, become probabilities (B, classes),
        float32, if images are mixed.
        """
        pixels = pixels.to(self._device, non_blocking=True)
        labels = labels.to(self._device, non_blocking=True)
        rows = pixels.view(-1, len(self._scale))
        images = rows.to(torch.float32).mul_(self._scale).add_(self._shift).view(pixels.shape)
        if self._augment.mixup or self._augment.cutmix:
            targets = F.one_hot(labels, self._classes).to(torch.float32)
            # All views are mixed by the same share and place, so that one target fits all of them.
            mixed = [self._mixed(view, targets, rng) for view in images.split(len(labels))]
            images, labels = torch.cat([view for view, _ in mixed]), mixed[0][1]
        images = images.permute(0, 3, 1, 2)  # which is channels_last
        return (images if self._channels_last else images.contiguous()), labels

    def _mixed(self, images: Tensor, targets: Tensor, rng: BatchRng) -> tuple[Tensor, Tensor]:
        """Mix by mixup or by cutmix; where both are asked for, half of the steps each."""
        chosen = self._augment
        by_cutmix, *center = rng.of_batch("mix", 3)
        if chosen.cutmix and (by_cutmix < 0.5 or not chosen.mixup):
            share = rng.beta_of_batch("cutmix", chosen.cutmix)
            return cutmix(images, targets, share, np.array(center))
        return mixup(images, targets, rng.beta_of_batch("mixup", chosen.mixup))
