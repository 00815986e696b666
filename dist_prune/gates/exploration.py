"""Closing units at random for a few samples, to learn what the network would lose without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dist_prune.gates.noise import NoiseKey, uniform_noise


class _Explored(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decisions: Tensor, closed: Tensor) -> Tensor:
        ctx.save_for_backward(closed)
        return decisions.masked_fill(closed, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (closed,) = ctx.saved_tensors
        return grad * closed, None


def stream_of(gate: int) -> int:
    """Of draws: heads have the streams from 0 up."""
    return -1 - gate


def explored(decisions: Tensor, share: float, moment: NoiseKey, gate: int) -> Tensor:
    """Decisions (B, units) with some closed in a ``share`` of the samples; the gradient passes only there.

    In each of those samples a part of the units that is drawn from [0, 1] is closed, so that a unit learns what
    it brings when many others of its gate are there, when few are, and when it is the only one: with the others
    around, one channel of many is hardly missed, be the layer as useful as it may. (The mean over all such
    coalitions is the Shapley value, by Owen's multilinear extension, Management Science 18, 1972; here those
    with few units count more.)

    Where a gate is open, the loss says little about it: the norm in the branch learns the scale at which the
    derivative with respect to the gate vanishes. Where it is closed, the derivative is that of bringing the unit
    back, which is what is to be known.
    """
    like = decisions.new_empty(len(decisions), 2 + decisions.shape[1], dtype=torch.float32)
    draws = uniform_noise(moment, stream_of(gate), like)
    chosen, part, own = draws[:, :1], draws[:, 1:2], draws[:, 2:]
    return _Explored.apply(decisions, (chosen < share) & (own < part))
