"""The default gating module in training on CPUs, from features to decisions, as one compiled operation.

Separate torch operations cost ten times what they compute there, in every gated block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dist_prune.gates.cpu_kernels.build import kernels_for
from dist_prune.gates.heads import Head, StraightThrough
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.random_drop import drop_stream


def fused_gating(
    features: Tensor,
    body: nn.Sequential,
    last: nn.Linear,
    head: Head,
    buffers: tuple[Tensor, Tensor, Tensor],
    random_drop: float,
    noise_key: NoiseKey | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return applied decisions, decisions, and logits (B, units) of a gating module for features (B, F).

    Args:
        features: input of the first dense layer.
        body: the dense layers but the last, each with norm and activation.
        last: the last dense layer.
        head: the binary head.
        buffers: ``threshold``, ``ste_window`` and ``logit_scale`` of the gating module.
        random_drop: share of the samples in which units are dropped at random.
        noise_key: key of the noise; None in evaluation.

    Returns:
        None where the layers have to be called one by one.
    """
    kernels = kernels_for(features)
    # The kernel divides by the variance of the batch, which one sample does not have.
    fits = features.dtype == torch.float32 and len(features) > 1
    if kernels is None or not fits or not _is_default(body, last, head):
        return None
    dense, norm, _ = body
    drop = (0.0, 0, 0)
    if noise_key is not None and random_drop:
        drop = random_drop, noise_key.of_stream(drop_stream(head.number)), int(noise_key.first_sample)
    return kernels.decide(
        features, dense.weight, dense.bias, norm.weight, norm.bias, last.weight, last.bias,
        norm.running_mean, norm.running_var, norm.num_batches_tracked,
        *buffers, norm.momentum, norm.eps, *drop,
    )  # fmt: skip


def _is_default(body: nn.Sequential, last: nn.Linear, head: Head) -> bool:
    if not body.training or len(body) != 3 or type(head) is not StraightThrough:
        return False
    dense, norm, relu = body
    # Exact types: a subclass may compute something else.
    return (
        type(dense) is type(last) is nn.Linear and type(norm) is nn.BatchNorm1d and type(relu) is nn.ReLU
        and norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
        and dense.bias is not None and last.bias is not None
        # Hooks count operations, or gather weights that are partitioned over ranks (ZeRO 3): the kernel skips them.
        and not any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in (body, dense, norm, relu, last, head)
        )
        and not _has_any_global_hook()
    )  # fmt: skip
