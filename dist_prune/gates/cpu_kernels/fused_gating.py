"""The default gating module in training on CPUs, from features to decisions, as one compiled operation.

Separate torch operations cost ten times what they compute there, in every gated block.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dist_prune.gates.cpu_kernels.build import kernels_for
from dist_prune.gates.heads import StraightThrough
from dist_prune.gates.noise import NoiseKey, drop_stream


def fused_gating(gate: Any, features: Tensor, noise_key: NoiseKey | None) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return applied decisions, decisions, and logits (B, units) of a ``Gate`` for features (B, F).

    None where its layers have to be called one by one.
    """
    kernels = kernels_for(features)
    # The kernel divides by the variance of the batch, which one sample does not have.
    fits = features.dtype == torch.float32 and len(features) > 1
    if kernels is None or not fits or not _is_default(gate):
        return None
    (dense, norm, _), last = gate.body, gate.last
    drop = (0.0, 0, 0)
    if noise_key is not None and gate.random_drop:
        drop = gate.random_drop, noise_key.of_stream(drop_stream(gate.head.number)), int(noise_key.first_sample)
    tensors = [
        features, dense.weight, dense.bias, norm.weight, norm.bias, last.weight, last.bias,
        norm.running_mean, norm.running_var, norm.num_batches_tracked,
        gate.threshold, gate.ste_window, gate.logit_scale,
    ]  # fmt: skip
    return kernels.decide(tensors, norm.momentum, norm.eps, *drop)


def _is_default(gate: Any) -> bool:
    body, last, head = gate.body, gate.last, gate.head
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
