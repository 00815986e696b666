"""Gate means over the global batch: what everything that concerns structure reads.

With rank r holding n_r samples and gate sums s_r, N = sum of n_r and W ranks whose gradients the engine
averages, the value is g = sum(s_r) / N and the gradient that of W * s_r / N: after averaging, gradients equal
those of one process with all N samples. The task loss of a rank is likewise W / N times its local sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.gates.insertion import follow_logits, gated_modules


class GateMeans(NamedTuple):
    """What the gates did over the global batch.

    values: mean activations, shape (all units,), fp32, in [0, 1], with the gradient of this rank's part
    attached; sizes: the number of units of each site, in the order of ``sites(model)``; logits: mean logits
    (all units,), fp32, detached: what a ``Budget`` ranks units by.
    """

    values: Tensor
    sizes: tuple[int, ...]
    logits: Tensor


class LocalGates(NamedTuple):
    """This rank's part of a forward pass, fp32: sums over its ``samples`` of decisions and of logits (all units,)."""

    sums: Tensor
    logits: Tensor
    samples: int
    sizes: tuple[int, ...]


def local_gates(model: nn.Module) -> LocalGates:
    """Take the decisions of the latest forward pass of every gate and add them up over samples.

    Raises RuntimeError if a gate has seen no forward pass since the last call, or if there is no gate.
    """
    taken = {name: gated.gate.take_decisions() for name, gated in gated_modules(model)}
    if not taken:
        raise RuntimeError("this model has no gates: call attach_gates first")
    missing = [name for name, latest in taken.items() if latest is None]
    if missing:
        raise RuntimeError(
            f"gate means need a forward pass since the last call; the gate of {missing[0]} saw none"
        )
    decisions, logits = zip(*(latest for latest in taken.values() if latest is not None), strict=True)
    # bf16 sums saturate at 256
    sums, logit_sums = (torch.cat(parts, dim=1).float().sum(0) for parts in (decisions, logits))
    return LocalGates(sums, logit_sums, decisions[0].shape[0], tuple(d.shape[1] for d in decisions))


class Window:
    """Means over the micro-batches of one optimizer step so far, on all ranks (gradient accumulation).

    One all-reduce a micro-batch carries the unit sums, the count and any scalars that the caller wants
    summed over ranks. The value is the mean over everything in the window so far, the gradient goes through
    the current micro-batch; so k identical micro-batches give what one gives.
    """

    def __init__(self) -> None:
        self._sums: Tensor | float = 0.0
        self.samples: Tensor | float = 0.0  # of the window so far, on all ranks
        self.micro_samples: Tensor | float = 0.0  # of the current micro-batch, on all ranks

    def reduce(self, sums: Tensor, count: int, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """Add a micro-batch: sums (units,) with gradient, count of samples, scalars (k,) to sum over ranks.

        Returns the means (units,), fp32, and the scalars summed over ranks (k,), detached. Nothing here
        waits for the device.
        """
        counts = torch.full((1,), float(count), device=sums.device)
        total = distributed.all_reduce_sum(torch.cat([sums.float(), counts, scalars.float()]))
        units = sums.numel()
        self.micro_samples = total[units]
        self.samples = self.samples + self.micro_samples
        self._sums = self._sums + total[:units]
        local = sums * (distributed.world_size() / self.micro_samples)
        return local + (self._sums / self.samples - local.detach()), total[units + 1 :]


def gate_means(model: nn.Module) -> GateMeans:
    """Mean activation of every unit over the global batch of the latest forward pass; all ranks call it.

    One all-reduce. Raises RuntimeError if there was no forward pass since the last call.
    """
    local = local_gates(model)
    window = Window()
    values, logits = window.reduce(local.sums, local.samples, local.logits)
    follow_logits(model, logits / window.samples)
    return GateMeans(values, local.sizes, logits / window.samples)
