"""Random drop: units are closed at random in a few samples, to learn what the network would lose without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dist_prune.gates.noise import NoiseKey, uniform_noise


class _RandomDrop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decisions: Tensor, dropped: Tensor) -> Tensor:
        ctx.save_for_backward(dropped)
        return decisions.masked_fill(dropped, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Where a gate is open the loss says little about it: the norm in the branch learns the scale at which the
        # derivative with respect to the gate vanishes. Where it is closed, the derivative is that of bringing the
        # unit back, which is its importance.
        (dropped,) = ctx.saved_tensors
        return grad * dropped, None


def drop_stream(gate: int) -> int:
    """Return the noise stream of a gate's drops; heads use the streams from 0 up."""
    return -1 - gate


def random_drop(decisions: Tensor, rate: float, noise_key: NoiseKey, gate: int) -> Tensor:
    """Close units at random in some samples; the gradient passes there only.

    In each of these samples the share of dropped units is itself drawn from [0, 1], so a unit learns what it adds when
    many others of its gate are open, when few are, and when none is: among all others, one channel of many is hardly
    missed, however useful its layer. (The mean over all such coalitions is the Shapley value, by Owen's multilinear
    extension, Management Science 18, 1972; here those with few units count more.)

    Args:
        decisions: zeros and ones (B, units).
        rate: share of the samples in which units are dropped.
        noise_key: of this forward pass.
        gate: number of the gate in its network.

    Returns:
        The decisions (B, units), without the dropped units.
    """
    like = decisions.new_empty(len(decisions), 2 + decisions.shape[1], dtype=torch.float32)
    draws = uniform_noise(noise_key, drop_stream(gate), like)
    # Two draws a sample (is it chosen, and how many units lose), then one a unit.
    chosen, share, own = draws[:, :1], draws[:, 1:2], draws[:, 2:]
    return _RandomDrop.apply(decisions, (chosen < rate) & (own < share))
