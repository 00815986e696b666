"""The usual gating module in training on CPUs: from features to decisions in one compiled operation.

Torch's operations cost ten times what they compute there, in every gated block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dist_prune.gates.exploration import stream_of
from dist_prune.gates.heads import Head, StraightThrough
from dist_prune.gates.kernels import kernels_for_features
from dist_prune.gates.noise import NoiseKey

if TYPE_CHECKING:
    from dist_prune.gates.modules import GatingModule


def fused_gating(
    gate: GatingModule, features: Tensor, moment: NoiseKey | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Decisions to be obeyed, its own, and logits (B, units), as the gate's layers give them for features (B, F).

    None if these have to be called: in evaluation, where they are others than usual, and where someone listens to them:
    hooks count operations, or gather weights that are spread over ranks (ZeRO 3).
    """
    kernels = kernels_for_features(features)
    body, last, head = gate.body, gate.last, gate.head
    if kernels is None or len(features) == 1 or not gate.training or not _usual(body, last, head):
        return None
    dense, norm, _ = body
    exploration = (0.0, 0, 0)
    if moment is not None and gate.exploration:
        exploration = gate.exploration, moment.key(stream_of(head.number)), moment.first_sample
    return kernels.decide(
        features, dense.weight, dense.bias, norm.weight, norm.bias, last.weight, last.bias,
        norm.running_mean, norm.running_var, norm.num_batches_tracked,
        gate.threshold, gate.reach, gate.sensitivity, norm.momentum, norm.eps, *exploration,
    )  # fmt: skip


def _usual(body: nn.Sequential, last: nn.Linear, head: Head) -> bool:
    if len(body) != 3 or type(head) is not StraightThrough:
        return False
    dense, norm, relu = body
    return (
        type(dense) is type(last) is nn.Linear and type(norm) is nn.BatchNorm1d and type(relu) is nn.ReLU
        and norm.training and norm.affine and norm.track_running_stats and norm.momentum is not None
        and dense.bias is not None and last.bias is not None
        and not any(map(_listened, (body, dense, norm, relu, last, head))) and not _has_any_global_hook()
    )  # fmt: skip


def _listened(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)
