"""The energy that a run has spent so far, over all ranks and all its invocations."""

from __future__ import annotations

from typing import Any

from dist_prune.checkpoints.train_state import SpentEnergy, TrainState
from dist_prune.measure.energy import EnergyMeter, co2_grams


class EnergyAccount:
    """Adds what ``meter`` measures to the energy of ``state``; all ranks alike.

    Energy that was spent after the checkpoint that a run continues from is not counted, as its seconds are not.
    """

    def __init__(self, meter: EnergyMeter, state: TrainState) -> None:
        self._meter, self._state = meter, state

    def add(self) -> None:
        """Measure up to now; all ranks call it."""
        measured = self._meter.take()
        # The epoch's account starts anew at each evaluation, the run's never does.
        for spent in (self._state.energy_run, self._state.energy_epoch):
            # A sum with an unmeasured part is unknown, not smaller.
            known = spent.joules is not None and measured.joules is not None
            spent.joules = spent.joules + measured.joules if known else None  # type: ignore[operator]
            spent.ranks = measured.ranks if spent.ranks is None else min(spent.ranks, measured.ranks)
            spent.sensors = measured.sensors

    def end_epoch(self) -> dict[str, Any]:
        """Measure up to now; return what an eval record says of the epoch. All ranks call it."""
        self.add()
        ended, self._state.energy_epoch = self._state.energy_epoch, SpentEnergy()
        return {**_record(ended), "energy_joules_total": self._state.energy_run.joules}

    def summary(self, grid_intensity: float | None) -> dict[str, Any]:
        """Measure up to now; return what the summary says of the run. All ranks call it.

        grid_intensity: grams of CO2 per kWh, if the user has set it.
        """
        self.add()
        run = self._state.energy_run
        found: dict[str, Any] = {**_record(run), "energy_missing": list(self._meter.missing)}
        if grid_intensity is not None:
            co2 = co2_grams(run.joules, grid_intensity)
            found |= {"co2_grams": co2, "grid_intensity": grid_intensity}
        return found


def _record(spent: SpentEnergy) -> dict[str, Any]:
    return {"energy_joules": spent.joules, "energy_ranks": spent.ranks or 0, "energy_sensors": spent.sensors}
