"""Heads: the last step of a gate, from a real number to a binary decision that still passes a gradient.

A new head is one small subclass of ``Head`` and an entry of ``HEADS``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.gates.noise import NoiseKey, logistic_noise
from dist_prune.gates.recompute import in_recomputation


class _StraightThroughFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return grad * (logits.abs() <= 1)


class Head(nn.Module):
    """Logits (B, units) -> zeros and ones of the same shape and dtype, with a gradient.

    ``forward`` takes the moment as well, which is None in evaluation. number: of the gate in its network; gates
    of one network draw different noise.
    """

    draws = True  # noise in training: without, the moment may be None there as well
    supports_budget = True  # whether a threshold on the logits decides how many units are open
    is_replicated = True  # on all ranks, from global means

    def __init__(self, units: int, number: int = 0) -> None:
        super().__init__()
        self.number = number

    def follow(self, logits: Tensor) -> None:
        """Called after a step with the units' mean logits over the global batch (units,)."""


class StraightThrough(Head):
    """The straight-through estimator of arXiv 2302.10798.

    Forward (equation 4): 1 where x > 0, else 0. Backward (equation 5): the gradient passes where |x| <= 1.
    """

    draws = False

    def forward(self, logits: Tensor, moment: NoiseKey | None = None) -> Tensor:
        """Logits of any shape -> zeros and ones of the same shape and dtype."""
        return _StraightThroughFunction.apply(logits)


class GumbelSoftmax(Head):
    """The hard Gumbel-softmax of arXiv 1611.01144 for two classes, open (logit x) and closed (logit 0).

    In training: 1 where x + noise > 0, the noise being the difference of two Gumbel draws; backward, the
    gradient of sigmoid((x + noise) / temperature). In evaluation: 1 where x > 0.
    """

    def forward(self, logits: Tensor, moment: NoiseKey | None = None) -> Tensor:
        """Logits (B, units) -> zeros and ones of the same shape and dtype."""
        if moment is None:
            return (logits > 0).to(logits.dtype)
        noisy = logits + logistic_noise(moment, self.number, logits)
        soft = torch.sigmoid(noisy / moment.temperature)
        return (noisy > 0).to(soft.dtype) + soft - soft.detach()


class BernoulliThreshold(Head):
    """The Bernoulli head as arXiv 2302.10798, section 5.4, describes it: open where x exceeds its mean.

    The mean over the global batch follows with a step's delay and as a running mean, so that it is the same
    on all ranks without a collective of its own, and is known in evaluation. Backward as equation 5. About half
    of the samples find a gate open, whatever it learns: no regularizer or budget can change that.
    """

    mean: Tensor
    momentum = 0.1
    draws = False
    supports_budget = False

    def __init__(self, units: int, number: int = 0) -> None:
        super().__init__(units, number)
        self.register_buffer("mean", torch.zeros(units))
        self._mean_in_forward = self.mean

    def forward(self, logits: Tensor, moment: NoiseKey | None = None) -> Tensor:
        """Logits (B, units) -> zeros and ones of the same shape and dtype."""
        if not in_recomputation():
            self._mean_in_forward = self.mean
        return _StraightThroughFunction.apply(logits - self._mean_in_forward)

    def follow(self, logits: Tensor) -> None:
        """Move the running mean."""
        # Not in place: a recomputation needs the mean that the forward pass has used.
        self.mean = self.mean.lerp(logits.to(self.mean), self.momentum)


HEADS: dict[str, type[Head]] = {
    "ste": StraightThrough,
    "gumbel": GumbelSoftmax,
    "bernoulli": BernoulliThreshold,
}
