"""Heads: the last step of a gate, from a real number to a binary decision that still passes a gradient.

A new head is one small nn.Module (logits in, zeros and ones of the same shape out) and an entry of HEADS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _StraightThroughFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return grad * (logits.abs() <= 1)


class StraightThrough(nn.Module):
    """The straight-through estimator of arXiv 2302.10798.

    Forward (equation 4): 1 where x > 0, else 0. Backward (equation 5): the gradient passes where |x| <= 1.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """Logits of any shape -> zeros and ones of the same shape and dtype."""
        return _StraightThroughFunction.apply(logits)


HEADS: dict[str, type[nn.Module]] = {"ste": StraightThrough}
