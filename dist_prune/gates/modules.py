"""Gating modules: small networks that decide, for each sample, which units of a site are open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.gates.heads import HEADS
from dist_prune.gates.ops import fan_out


@contextlib.contextmanager
def _without_autocast(device_type: str) -> Iterator[None]:
    """What ``torch.autocast(device_type, enabled=False)`` does, at a tenth of its cost (it is paid per gate)."""
    was_enabled = torch.is_autocast_enabled(device_type)
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, was_enabled)


class Gate(nn.Module):
    """What every gate has in common: it keeps the decisions of its latest forward pass.

    ``forward`` takes a block's input and returns it twice, for branch and shortcut, together with the
    decisions: a gate that reads the input adds up all three gradients on the way back (``ops.fan_out``).

    ``decisions`` is a tensor of zeros and ones, (B, units), with its graph attached in training, until
    ``take_decisions`` hands it over.
    """

    units: int

    def __init__(self) -> None:
        super().__init__()
        self._decisions: Tensor | None = None

    def keep(self, decisions: Tensor) -> Tensor:
        """Remember the decisions of this forward pass and pass them on."""
        self._decisions = decisions
        return decisions

    def take_decisions(self) -> Tensor | None:
        """The decisions of the latest forward pass; None if there was none since the last call."""
        decisions, self._decisions = self._decisions, None
        return decisions

    def __getstate__(self) -> dict[str, Any]:
        # Decisions of a training step hang in a graph, which cannot be copied and means nothing to a copy.
        return {**self.__dict__, "_decisions": None}


class LayerGate(Gate):
    """The layer gating module of arXiv 2302.10798, Table 1 (left column).

    Average pool, dense to ``hidden`` (16), BatchNorm1d, ReLU, dense to 1, binary head. ``open_bias`` is the
    initial bias of the last dense layer: at 1 (with small weights behind it) the gate starts open for nearly
    every sample and still within reach of equation 5's gradient, |x| <= 1; None keeps torch's default.
    """

    units = 1

    def __init__(
        self, in_channels: int, hidden: int = 16, head: str = "ste", open_bias: float | None = 1.0
    ) -> None:
        super().__init__()
        self.dense1 = nn.Linear(in_channels, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dense2 = nn.Linear(hidden, 1)
        self.head = HEADS[head]()
        if open_bias is not None:
            nn.init.constant_(self.dense2.bias, open_bias)
            nn.init.normal_(self.dense2.weight, std=0.01)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Block input (B, C, H, W) -> the same twice, and decisions (B, 1) in the dtype of the gate's weights."""
        # Thousands of pixels are averaged in fp32, and a decision is not worth a bf16 rounding.
        with _without_autocast(x.device.type):
            first, second, pooled = fan_out(x)
            pooled = pooled.to(self.dense1.weight.dtype)
            logits = self.dense2(self.relu(self.norm(self.dense1(pooled))))
            return first, second, self.keep(self.head(logits))


class FixedGate(Gate):
    """A gate whose decisions are those of a mask, the same for every sample."""

    open_units: Tensor

    def __init__(self, open_units: Tensor) -> None:
        super().__init__()
        self.units = open_units.numel()
        self.register_buffer("open_units", open_units, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Block input (B, ...) -> the same twice, and decisions (B, units)."""
        return x, x, self.keep(self.open_units.to(x.dtype).expand(x.shape[0], -1))
