"""What a run has spent so far, over all ranks and all its invocations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dist_prune.checkpoints.format import Checkpoint
from dist_prune.measure.energy import EnergyMeter, co2_grams


@dataclass
class Spent:
    """Energy so far.

    joules: None from the moment on that a part was not measured; ranks: the fewest that had a sensor in any part, None
    before the first; sensors: of each kind, in the latest part.
    """

    joules: float | None = 0.0
    ranks: int | None = None
    sensors: dict[str, int] = field(default_factory=dict)


class EnergyAccount:
    """Adds up what ``meter`` measures from now on to what the checkpoint says was spent before; all ranks alike.

    What was spent after the checkpoint that a run goes on from is not counted, as its seconds are not.
    """

    def __init__(self, meter: EnergyMeter, resume: Checkpoint | None) -> None:
        self._meter = meter
        self.run, self.epoch = Spent(), Spent()
        if resume is not None:
            unknown = asdict(Spent(joules=None, ranks=0))  # of a checkpoint without an account
            saved = resume.state.get("energy", {"run": unknown, "epoch": unknown})
            self.run, self.epoch = Spent(**saved["run"]), Spent(**saved["epoch"])

    def add(self) -> None:
        """Measure up to now; all ranks call it."""
        energy = self._meter.take()
        for spent in (self.run, self.epoch):
            known = spent.joules is not None and energy.joules is not None
            spent.joules = spent.joules + energy.joules if known else None  # type: ignore[operator]
            spent.ranks = energy.ranks if spent.ranks is None else min(spent.ranks, energy.ranks)
            spent.sensors = energy.sensors

    def end_epoch(self) -> dict[str, Any]:
        """Measure up to now, and what an eval record says of the epoch; all ranks call it."""
        self.add()
        ended, self.epoch = self.epoch, Spent()
        return {**_record(ended), "energy_joules_total": self.run.joules}

    def summary(self, grid_intensity: float | None) -> dict[str, Any]:
        """Measure up to now, and what the summary says of the run; all ranks call it.

        grid_intensity: grams of CO2 per kWh, if the user has said.
        """
        self.add()
        found: dict[str, Any] = {**_record(self.run), "energy_missing": list(self._meter.missing)}
        if grid_intensity is not None:
            found |= {
                "co2_grams": co2_grams(self.run.joules, grid_intensity),
                "grid_intensity": grid_intensity,
            }
        return found

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as plain data."""
        return {"run": asdict(self.run), "epoch": asdict(self.epoch)}


def _record(spent: Spent) -> dict[str, Any]:
    return {
        "energy_joules": spent.joules,
        "energy_ranks": spent.ranks or 0,
        "energy_sensors": spent.sensors,
    }
