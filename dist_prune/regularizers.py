"""Regularizers on gate means: pure functions, tensors in, scalar out, one equation of arXiv 2302.10798 each.

``means`` begins with (values, sizes), as ``GateMeans`` does: the mean activations of all units over the global batch,
(sum of sizes,), in [0, 1], and the number of units of each site in the same order; see ``dist_prune.gate_means``.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Means = tuple[Tensor, Sequence[int]] | tuple[Tensor, Sequence[int], Tensor]


def mean_over_sites(means: Means) -> Tensor:
    """Return the mean over sites of the mean over each site's units (the averaging of equation 9).

    With one unit per site (layer gates) it is the plain mean of equation 8.
    """
    values, sizes = means[:2]
    return (values * _weights(tuple(sizes), values.dtype, values.device)).sum()


# Cached: copying them to the device in each step would wait for it. Tensors made in inference mode could not be used
# in training later.
@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _weights(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weight of each unit in the mean over sites (all units,)."""
    counts = torch.tensor(sizes)
    return torch.repeat_interleave(1.0 / (len(sizes) * counts.to(dtype)), counts).to(device)


def polarization(means: Means, weight: float = 1.0) -> Tensor:
    """Return the mean of g (1 - g), equations 7 to 9: 0 exactly when every unit's mean is 0 or 1, at most 0.25."""
    values, sizes = means[:2]
    return weight * mean_over_sites((values * (1 - values), sizes))


def activation(means: Means, weight: float = 1.0) -> Tensor:
    """Return the mean activation, equation 11; its weight trades accuracy for fewer open units."""
    return weight * mean_over_sites(means)


def macs_distance(share: Tensor, target: float, weight: float = 1.0) -> Tensor:
    """Return the distance of the expected MACs from a budget; share, target: of the dense MACs.

    share is a scalar with gradient (``Costs.share`` of the gate means).
    """
    # The gradient of the absolute distance is constant until the target is met; that of a square would fade before.
    return weight * (share - target).abs()
