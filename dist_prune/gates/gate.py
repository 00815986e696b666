"""The base class of all gates, and the gate that a mask decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.gates.recompute import in_recomputation


class Gate(nn.Module):
    """A gate, which records the decisions of its latest forward pass.

    ``forward`` takes what the gate reads, a map (B, C, H, W) or tokens (B, T, C). It returns it for branch and
    shortcut, together with the decisions (B, units), zeros and ones; backward sums all three gradients
    (``ops.fan_out``).

    Attributes:
        units: number of units.
        constant: 0 or 1 if the gate decides that for all samples and units, else None. Then neither the gate nor a
            branch that it closes needs to be computed.
        frozen: decisions do not depend on what the gate reads.
        on_decided: called after each decision, if set; not while the network is compiled.
    """

    units: int
    constant: int | None = None
    frozen = False
    is_replicated = True  # buffers follow from global means, so they are equal on all ranks

    def __init__(self) -> None:
        super().__init__()
        self._latest: tuple[Tensor, Tensor] | None = None
        self.on_decided: Callable[[Gate], None] | None = None

    def record(self, decisions: Tensor, logits: Tensor) -> None:
        """Record decisions and logits (B, units), these detached, of this forward pass."""
        # A recomputation repeats a pass whose decisions have been popped already.
        if in_recomputation():
            return
        self._latest = decisions, logits
        # A call would break the compiled graph.
        if not torch.compiler.is_compiling() and self.on_decided is not None:
            self.on_decided(self)

    def pop_decisions(self) -> tuple[Tensor, Tensor] | None:
        """Return decisions and logits (B, units) of the latest forward pass, once.

        In training the graph is attached to the decisions. None if there was no pass since the last call.
        """
        latest, self._latest = self._latest, None
        return latest

    def __getstate__(self) -> dict[str, Any]:
        # The graph of recorded decisions cannot be copied, and a copy has no use for it.
        return {**self.__dict__, "_latest": None, "on_decided": None}


class FixedGate(Gate):
    """A gate whose decisions are those of a mask, the same for every sample."""

    frozen = True
    open_units: Tensor

    def __init__(self, open_units: Tensor) -> None:
        super().__init__()
        self.units = open_units.numel()
        self.register_buffer("open_units", open_units, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the block input (B, ...) twice, and decisions (B, units)."""
        decisions = self.open_units.to(x.dtype).expand(x.shape[0], -1)
        self.record(decisions, decisions)
        return x, x, decisions
