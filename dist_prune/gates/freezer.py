"""Freezing: gates whose units are decided are no longer evaluated, nor are the branches that they close."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dist_prune.gates.wrappers import gates_of


class Freezer:
    """Freezes the gates of a model whose units are decided, from global gate means: the same on every rank.

    A unit is decided once it was closed for every sample of ``patience`` global batches in a row, or open for every
    one. A gate whose units are all decided is frozen: neither its gating module nor a layer that it closes is computed
    any more.

    Args:
        model: the gated network.
        patience: steps in a row.
        thaw_after: steps after which a decided unit has to be decided again; None: never.
        freezes: False only tracks what is decided, for compiled networks: each frozen gate would be another graph to
            compile.
    """

    def __init__(self, model: nn.Module, patience: int, thaw_after: int | None = None, freezes: bool = True) -> None:
        self._patience, self._thaw_after, self._freezes = patience, thaw_after, freezes
        self._sizes = [gate.units for gate in gates_of(model).values()]
        self._streaks = torch.zeros(sum(self._sizes))  # steps in a row: open above 0, closed below

    @property
    def all_decided(self) -> bool:
        """Return True if every unit of the network is decided."""
        return bool((self._streaks.abs() >= self._patience).all())

    def update(self, model: nn.Module, means: Tensor, open_counts: bool = True) -> None:
        """Count a step, then freeze and thaw gates.

        Args:
            model: the gated network.
            means: of all units over the global batch, (all units,), on the CPU.
            open_counts: units may be decided to stay open; False while gates, which begin open, have not learned yet.
        """
        # One signed count a unit: a step of the other kind, or of both kinds, begins it anew.
        streaks, opened = self._streaks, (means == 1) & open_counts
        streaks = torch.where(means == 0, streaks.clamp(max=0) - 1, torch.zeros(()))
        self._streaks = torch.where(opened, self._streaks.clamp(min=0) + 1, streaks)
        if self._thaw_after is not None:
            self._streaks[self._streaks.abs() >= self._patience + self._thaw_after] = 0
        self._freeze(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors on the CPU, as an optimizer does."""
        return {"streaks": self._streaks.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; then call ``apply`` with the model."""
        self._streaks = state["streaks"].clone()

    def apply(self, model: nn.Module) -> None:
        """Freeze the decided gates of a model that has just been loaded, or is a copy."""
        # Its gates may be frozen in another state than they were when the streaks were stored.
        for gate in gates_of(model).values():
            gate.freeze(None)
        self._freeze(model)

    def _freeze(self, model: nn.Module) -> None:
        if not self._freezes:
            return
        decided = (self._streaks.abs() >= self._patience).split(self._sizes)
        opened = (self._streaks > 0).split(self._sizes)
        for gate, units_decided, units in zip(gates_of(model).values(), decided, opened, strict=True):
            freezes = bool(units_decided.all())
            # Freezing writes to the gate, so only changes are applied.
            if freezes != gate.frozen:
                gate.freeze(units if freezes else None)
