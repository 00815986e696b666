"""Evaluation by counts: every sample once over all ranks, one all-reduce at the end, none per batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dist_prune import distributed


@torch.no_grad()
def accuracies(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: AbstractContextManager | None = None,
) -> dict[str, float]:
    """Top-1 accuracy of each model over the shares of all ranks; the data is read and decoded once.

    batches: this rank's (images (B, C, H, W), labels (B,)); a rank may have none. The models are put in eval
    mode. Models that are the same object are computed once. Raises ValueError if no rank has a sample.
    """
    distinct = {id(model): model.eval() for model in models.values()}
    counts = torch.zeros(len(distinct) + 1, dtype=torch.float64, device=device)
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast or nullcontext():
            right = [(model(images).argmax(1) == labels).sum() for model in distinct.values()]
        counts += torch.stack([*right, torch.as_tensor(len(labels), device=device)])
    *right_counts, samples = distributed.all_reduce_sum(counts).tolist()
    if samples == 0:
        raise ValueError("nothing to evaluate: no rank has a sample")
    by_model = dict(zip(distinct, right_counts, strict=True))
    return {name: by_model[id(model)] / samples for name, model in models.items()}


@torch.no_grad()
def max_abs_difference(a: nn.Module, b: nn.Module, images: Tensor) -> tuple[float, float]:
    """(largest absolute difference of the two outputs, tolerance for fp32: 1e-5 * max(1, |y| max))."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first, second = a.eval()(images), b.eval()(images)
    tolerance = 1e-5 * max(1.0, first.abs().max().item())
    return (first - second).abs().max().item(), tolerance
