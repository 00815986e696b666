"""What every gate has in common, and the gate that a mask decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.gates.recompute import in_recomputation


class Gate(nn.Module):
    """What every gate has in common: it keeps the decisions of its latest forward pass.

    ``forward`` takes what a gate reads, a map (B, C, H, W) or tokens (B, T, C), and returns it twice, for two
    users, together with the decisions: a gate that reads its input adds up all three gradients on the way
    back (``ops.fan_out``).

    Decisions are zeros and ones, (B, units), with their graph attached in training, until ``take_decisions``
    hands them over together with the logits that they come from.

    ``constant``: what a gate decides for every sample and all of its units, 0 or 1, so that nobody needs to compute
    it, or the branch that it closes; None where units differ or it has to be asked. ``listener``: is told of this gate
    when it has decided, unless it is compiled: a call would break the graph.
    """

    units: int
    constant: int | None = None
    is_replicated = True  # on all ranks, from global means

    @property
    def frozen(self) -> bool:
        """Whether it decides without looking at what it reads."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self._latest: tuple[Tensor, Tensor] | None = None
        self.listener: Callable[[Gate], None] | None = None

    def keep(self, decisions: Tensor, logits: Tensor) -> Tensor:
        """Remember the decisions of this forward pass, and pass them on."""
        # A recomputation repeats a pass whose decisions have been taken already.
        if in_recomputation():
            return decisions
        self._latest = decisions, logits.detach()
        if not torch.compiler.is_compiling() and self.listener is not None:
            self.listener(self)
        return decisions

    def take_decisions(self) -> tuple[Tensor, Tensor] | None:
        """Decisions and logits (B, units) of the latest forward pass; None if there was none since the last call."""
        latest, self._latest = self._latest, None
        return latest

    def __getstate__(self) -> dict[str, Any]:
        # Decisions of a training step hang in a graph, which cannot be copied and means nothing to a copy.
        return {**self.__dict__, "_latest": None, "listener": None}


class FixedGate(Gate):
    """A gate whose decisions are those of a mask, the same for every sample."""

    open_units: Tensor

    def __init__(self, open_units: Tensor) -> None:
        super().__init__()
        self.units = open_units.numel()
        self.register_buffer("open_units", open_units, persistent=False)

    @property
    def frozen(self) -> bool:
        """Always."""
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Block input (B, ...) -> the same twice, and decisions (B, units)."""
        decisions = self.open_units.to(x.dtype).expand(x.shape[0], -1)
        return x, x, self.keep(decisions, decisions)
