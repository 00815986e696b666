"""Regularizers on gate means: pure functions, tensors in, scalar out, one equation each.

``means`` is a pair (values, sizes), or begins with them as ``GateMeans`` does: the flat vector of all units'
mean activations over the global batch, shape (sum of sizes,), in [0, 1], and the number of units of each site
in the same order; see ``dist_prune.gate_means``. Equations are those of arXiv 2302.10798.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Means = tuple[Tensor, Sequence[int]] | tuple[Tensor, Sequence[int], Tensor]


def mean_over_sites(means: Means) -> Tensor:
    """The mean over sites of the mean over each site's units (the averaging of equation 9).

    With one unit per site (layer gates) it is the plain mean of equation 8. Returns a scalar.
    """
    values, sizes = means[:2]
    return (values * _weights(tuple(sizes), values.dtype, values.device)).sum()


@lru_cache(maxsize=16)  # making them anew for each step would wait for the device
@torch.inference_mode(False)
def _weights(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What each unit counts in the mean over sites (all units,)."""
    counts = torch.tensor(sizes)
    return torch.repeat_interleave(1.0 / (len(sizes) * counts.to(dtype)), counts).to(device)


def polarization(means: Means, weight: float = 1.0) -> Tensor:
    """Equations 7 to 9: the mean of g (1 - g); 0 exactly when every unit's mean is 0 or 1, at most 0.25."""
    values, sizes = means[:2]
    return weight * mean_over_sites((values * (1 - values), sizes))


def activation(means: Means, weight: float = 1.0) -> Tensor:
    """Equation 11: the mean activation; its weight trades accuracy for fewer open units."""
    return weight * mean_over_sites(means)


def macs_distance(share: Tensor, target: float, weight: float = 1.0) -> Tensor:
    """The distance of the expected MACs from a budget.

    share: expected MACs as a share of the dense network's, a scalar with gradient (``Costs.share`` of the gate
    means); target: the wanted share. The absolute distance keeps a pull of constant strength until the target
    is met, where a square would let go before it.
    """
    return weight * (share - target).abs()
