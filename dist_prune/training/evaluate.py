"""Evaluation by counts: every sample once over all ranks, one all-reduce at the end, none per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.errors import NothingToEvaluate


@torch.no_grad()
def accuracies(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: AbstractContextManager | None = None,
) -> dict[str, float]:
    """Return the top-1 accuracy of each model over the shares of all ranks; the data are read and decoded once.

    models: the same names on every rank; they are put in eval mode. batches: this rank's (images (B, C, H, W),
    labels (B,)); a rank may have none. Raises NothingToEvaluate if no rank has a sample.
    """
    for model in models.values():
        model.eval()
    counts = torch.zeros(len(models) + 1, dtype=torch.float64, device=device)
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        # The precision of training: users compare these figures with those of training steps.
        with autocast or nullcontext():
            right = [(model(images).argmax(1) == labels).sum() for model in models.values()]
        counts += torch.stack([*right, torch.as_tensor(len(labels), device=device)])
    # One all-reduce at the end: ranks may have different numbers of batches.
    *right_counts, samples = distributed.all_reduce_sum(counts).tolist()
    if samples == 0:
        raise NothingToEvaluate(
            "nothing to evaluate: no image could be read; fix the data (lines above that begin with 'skipped:' say why)"
        )
    return {name: right / samples for name, right in zip(models, right_counts, strict=True)}


@torch.no_grad()
def max_abs_difference(a: nn.Module, b: nn.Module, images: Tensor) -> tuple[float, float]:
    """Return (largest absolute difference of the two outputs, tolerance for fp32: 1e-5 * max(1, |y| max))."""
    # TF32 keeps 10 bits of the mantissa, which would hide a real difference in its rounding.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first, second = a.eval()(images), b.eval()(images)
    tolerance = 1e-5 * max(1.0, first.abs().max().item())
    return (first - second).abs().max().item(), tolerance
