"""Heads: the last step of a gate, from a real number to a binary decision that still passes a gradient.

A new head is one small subclass of ``Head`` and an entry of ``HEADS``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.gates.noise import NoiseKey, noise
from dist_prune.gates.recompute import in_recomputation


class _StraightThroughFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return (logits > 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Far from 0 a small change of the logit would not change the decision (equation 5).
        (logits,) = ctx.saved_tensors
        return grad * (logits.abs() <= 1)


class Head(nn.Module):
    """Logits (B, units) -> zeros and ones of the same shape and dtype, with a gradient.

    ``forward`` also takes the noise key, which is None in evaluation.

    Args:
        units: number of units of the gate.
        number: of the gate in its network; gates of one network draw different noise.
    """

    draws = True  # needs a noise key in training
    supports_budget = True  # a threshold on the logits decides how many units are open
    is_replicated = True  # buffers follow from global means, so they are equal on all ranks

    def __init__(self, units: int, number: int = 0) -> None:
        super().__init__()
        self.number = number

    def follow(self, logits: Tensor) -> None:
        """Take the units' mean logits over the global batch (units,), after a step."""


class StraightThrough(Head):
    """The straight-through estimator of arXiv 2302.10798.

    Forward (equation 4): 1 where x > 0, else 0. Backward (equation 5): the gradient passes where |x| <= 1.
    """

    draws = False

    def forward(self, logits: Tensor, noise_key: NoiseKey | None = None) -> Tensor:
        """Return zeros and ones of the shape and dtype of ``logits``."""
        return _StraightThroughFunction.apply(logits)


class GumbelSoftmax(Head):
    """The hard Gumbel-softmax of arXiv 1611.01144 for two classes, open (logit x) and closed (logit 0).

    In training: 1 where x + noise > 0, the noise being the difference of two Gumbel draws; backward, the
    gradient of sigmoid((x + noise) / temperature). In evaluation: 1 where x > 0.
    """

    def forward(self, logits: Tensor, noise_key: NoiseKey | None = None) -> Tensor:
        """Return zeros and ones (B, units) of the dtype of ``logits``."""
        if noise_key is None:
            return (logits > 0).to(logits.dtype)
        # The difference of two Gumbel draws is logistic.
        noisy = logits + noise(noise_key, self.number, logits, logistic=True)
        soft = torch.sigmoid(noisy / noise_key.temperature)
        # The value is the hard decision, the gradient that of the soft one.
        return (noisy > 0).to(soft.dtype) + soft - soft.detach()


class BernoulliThreshold(Head):
    """The Bernoulli head as arXiv 2302.10798, section 5.4, describes it: open where x exceeds its mean.

    Backward as equation 5. About half of the samples open a gate, whatever it learns: no regularizer or budget can
    change that.
    """

    mean: Tensor
    momentum = 0.1
    draws = False
    supports_budget = False

    def __init__(self, units: int, number: int = 0) -> None:
        super().__init__(units, number)
        self.register_buffer("mean", torch.zeros(units))
        self._mean_in_forward = self.mean

    def forward(self, logits: Tensor, noise_key: NoiseKey | None = None) -> Tensor:
        """Return zeros and ones (B, units) of the dtype of ``logits``."""
        if not in_recomputation():
            self._mean_in_forward = self.mean
        return _StraightThroughFunction.apply(logits - self._mean_in_forward)

    def follow(self, logits: Tensor) -> None:
        """Move the running mean, a step late."""
        # The batch's own mean would cost a collective in each gate, and evaluation would not have it.
        # Not in place: a recomputation needs the mean that the forward pass has used.
        self.mean = self.mean.lerp(logits.to(self.mean), self.momentum)


HEADS: dict[str, type[Head]] = {"ste": StraightThrough, "gumbel": GumbelSoftmax, "bernoulli": BernoulliThreshold}
