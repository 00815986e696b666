"""Bids: what gates have learned of their units, averaged, and set against a price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dist_prune.gates.modules import GatingModule

_SMOOTHING = 0.03  # share of the run over which bids are averaged: those of single steps are noise
_GAP = 0.5  # between the bids of open and closed units, in parts of the range of all bids


def margins(bids: Tensor, closed: Tensor) -> Tensor:
    """How far each unit bids above the price of staying open, which lies in a gap between open and closed units.

    bids: (units,); closed: (units,) bool. A closed unit counts as a gap below the lowest open bid, or as its own
    bid where that is lower still.
    """
    gap = max(1.0, _GAP * (bids.max() - bids.min()).item())
    lowest = bids[~closed].min() if not closed.all() else bids.max() + gap
    return torch.where(closed, torch.minimum(bids, lowest - gap), bids) - lowest + gap / 2


class Memory:
    """What a budget remembers from step to step, for all units.

    logits: mean logits of the latest step in which the unit's gate was asked; asked: whether that was the latest
    step (bool); bids: averaged; closed: who has left (bool); reach: of all gates; progress: of the latest step,
    None before the first.
    """

    def __init__(self, gates: Sequence[GatingModule]) -> None:
        self.sizes = [gate.units for gate in gates]
        self.logits, self.bids = torch.zeros(2, sum(self.sizes))
        self.asked, self.closed = torch.zeros(2, sum(self.sizes), dtype=torch.bool)
        self.reach = 1.0
        self.progress: float | None = None

    def expect(self, logits: Tensor, asked: Tensor) -> Tensor:
        """Take note of a step's logits, and return those to expect in the next one (units,).

        asked: (units,) bool; gates that are frozen have no logits, and stay where they were when last asked.
        """
        logits = torch.where(asked, logits, self.logits)
        expected = torch.where(asked & self.asked, 2 * logits - self.logits, logits)
        self.logits, self.asked = logits, asked
        return expected

    def average_bids(self, bids: Tensor, progress: float) -> None:
        """Follow the bids of a step; the older an earlier one, the less it counts."""
        if self.progress is None:
            self.bids = bids
        else:
            self.bids = self.bids.lerp(bids, 1 - math.exp((self.progress - progress) / _SMOOTHING))

    def store(self, gates: Sequence[GatingModule], thresholds: Tensor) -> None:
        """Set the gates."""
        for gate, part in zip(gates, thresholds.split(self.sizes), strict=True):
            gate.threshold.copy_(part)
            gate.reach.fill_(self.reach)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors on the CPU, copied."""
        numbers = {"reach": self.reach} | ({} if self.progress is None else {"progress": self.progress})
        units = {"logits": self.logits, "bids": self.bids, "closed": self.closed, "asked": self.asked}
        # Full precision: a resumed run must compute the very numbers of the uninterrupted one.
        return {
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()},
            **{name: values.to(torch.float32, copy=True) for name, values in units.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.logits, self.bids = state["logits"].clone(), state["bids"].clone()
        self.closed, self.asked = state["closed"] > 0, state["asked"] > 0
        self.reach = state["reach"].item()
        self.progress = state["progress"].item() if "progress" in state else None
