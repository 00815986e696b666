"""The last steps of a batch, on the device that trains on it: normalization, and mixup or cutmix."""

import numpy as np
import torch
from torch import Tensor

from data_tools import ShardIndex
from dist_prune.config import AugmentConfig
from dist_prune.data.augment import cutmix, mixup, one_hot
from dist_prune.data.batch_rng import BatchRng

Batch = tuple[Tensor, Tensor]


class BatchTransform:
    """Turns pixels (B, H, W, C), uint8, into images (B, C, H, W), float32, on ``device``.

    Pixels travel to it as they are, a quarter of the bytes. ``augment`` None mixes nothing; ``width`` is that of
    the images, in pixels.
    """

    def __init__(
        self, index: ShardIndex, width: int, augment: AugmentConfig | None, channels_last: bool, device: torch.device
    ) -> None:
        self._augment = augment or AugmentConfig()
        self._classes, self._channels_last, self._device = len(index.class_names), channels_last, device
        mean, std = np.array(index.mean), np.array(index.std)
        # One number for each value of a row of pixels: adding and multiplying by three numbers is slow.
        self._scale = torch.from_numpy(np.tile(1 / (255 * std), width)).float().to(device)
        self._shift = torch.from_numpy(np.tile(-mean / std, width)).float().to(device)

    def __call__(self, pixels: Tensor, labels: Tensor, rng: BatchRng) -> Batch:
        """Normalize, and mix neighbors if asked for.

        pixels: of one view or several, view after view; labels (B,), int64, become probabilities (B, classes),
        float32, if images are mixed.
        """
        pixels = pixels.to(self._device, non_blocking=True)
        labels = labels.to(self._device, non_blocking=True)
        rows = pixels.view(-1, len(self._scale))
        images = rows.to(torch.float32).mul_(self._scale).add_(self._shift).view(pixels.shape)
        if self._augment.mixup or self._augment.cutmix:
            targets = one_hot(labels, self._classes)
            # All views are mixed by the same share and place, so that one target fits all of them.
            mixed = [self._mixed(view, targets, rng) for view in images.split(len(labels))]
            images, labels = torch.cat([view for view, _ in mixed]), mixed[0][1]
        images = images.permute(0, 3, 1, 2)  # which is channels_last
        return (images if self._channels_last else images.contiguous()), labels

    def _mixed(self, images: Tensor, targets: Tensor, rng: BatchRng) -> Batch:
        """Mix by mixup or by cutmix; where both are asked for, half of the steps each."""
        chosen = self._augment
        by_cutmix, *center = rng.of_batch("mix", 3)
        if chosen.cutmix and (by_cutmix < 0.5 or not chosen.mixup):
            share = rng.beta_of_batch("cutmix", chosen.cutmix)
            return cutmix(images, targets, share, np.array(center))
        return mixup(images, targets, rng.beta_of_batch("mixup", chosen.mixup))
