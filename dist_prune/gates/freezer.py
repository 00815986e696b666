"""Freezing decided units: what all samples have agreed on for long is no longer asked, and no longer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dist_prune.gates.insertion import gating_modules
from dist_prune.gates.modules import GatingModule


class Freezer:
    """Watches the global gate means of one model, the same on every rank, and freezes gates that are decided.

    A unit is decided once it was closed for every sample of ``patience`` global batches in a row, or open for
    every one. A gate whose units are all decided is frozen: its gating module is no longer computed, nor
    the branch of a layer that it closes, and equation 5 no longer gives it a gradient. ``thaw_after`` steps
    later, if given, its units have to decide anew.

    ``state_dict`` holds all that it remembers, as an optimizer's does. freezes: False only
    remembers what is decided, for compiled networks: each frozen gate would be another graph to compile.
    """

    def __init__(
        self, model: nn.Module, patience: int, thaw_after: int | None = None, freezes: bool = True
    ) -> None:
        gates = gating_modules(model)
        self._patience, self._thaw_after, self._freezes = patience, thaw_after, freezes
        self._sizes = [gate.units for gate in gates]
        self._streaks = torch.zeros(sum(self._sizes))  # steps in a row: open above 0, closed below

    @property
    def all_decided(self) -> bool:
        """Whether every unit of the network is decided."""
        return bool(self._decided().all())

    def update(self, model: nn.Module, means: Tensor, open_counts: bool = True) -> None:
        """After a step. means: of all units over the global batch, (all units,), on the CPU.

        open_counts: whether units may be decided to stay open; where all gates begin open, that says nothing
        before they have begun to learn.
        """
        streaks, opened = self._streaks, (means == 1) & open_counts
        streaks = torch.where(means == 0, streaks.clamp(max=0) - 1, torch.zeros(()))
        self._streaks = torch.where(opened, self._streaks.clamp(min=0) + 1, streaks)
        if self._thaw_after is not None:
            self._streaks[self._streaks.abs() >= self._patience + self._thaw_after] = 0
        self._apply(gating_modules(model))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors on the CPU."""
        return {"streaks": self._streaks.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; then call ``apply`` with the model."""
        self._streaks = state["streaks"].clone()

    def apply(self, model: nn.Module) -> None:
        """Freeze the gates of a model that has just been loaded, or is a copy, by what is decided."""
        gates = gating_modules(model)
        for gate in gates:  # which may have been frozen otherwise
            gate.freeze(None)
        self._apply(gates)

    def _decided(self) -> Tensor:
        return self._streaks.abs() >= self._patience

    def _apply(self, gates: Sequence[GatingModule]) -> None:
        if not self._freezes:
            return
        decided, opened = self._decided().split(self._sizes), (self._streaks > 0).split(self._sizes)
        for gate, all_of_it, units in zip(gates, decided, opened, strict=True):
            freezes = bool(all_of_it.all())
            if freezes != gate.frozen:
                gate.freeze(units if freezes else None)
