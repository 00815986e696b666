"""Energy of a stretch of time over all ranks: every sensor counts once, however many ranks can read it."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass, field

import torch

from dist_prune import distributed
from dist_prune.measure.sensors import Found, Sensor

POLL_SECONDS = 10.0  # the RAPL counters of large CPUs restart every two minutes or so under load
_MOVES_WITHIN = 1.0  # seconds: a counter that stands still for longer is broken


@dataclass(frozen=True)
class Energy:
    """Energy of a stretch of time, over all ranks.

    joules: of all sensors, None where not measured; ranks: how many had a sensor; sensors: how many there were of
    each kind (gpu, cpu: packages, dram).
    """

    joules: float | None = None
    ranks: int = 0
    sensors: dict[str, int] = field(default_factory=dict)


class EnergyMeter:
    """The sensors of all ranks, each of which is read by the first rank that can. All ranks make one together.

    found: what this rank can read; device: of its collectives. A sensor that fails, or whose counter falls or
    stands still, leaves that stretch of time unmeasured; after it the ranks continue with the others.
    """

    def __init__(self, found: Found, device: torch.device) -> None:
        self._found, self._device = found.sensors, device
        self.missing = found.missing
        self._share_out()
        if self._own:
            threading.Thread(target=_follow, args=(weakref.ref(self),), name="energy", daemon=True).start()

    def take(self) -> Energy:
        """The energy since the last call (or since the meter was made); all ranks call it.

        One small collective if any rank has a sensor, else none.
        """
        if not self.ranks:
            return Energy()
        joules, lost = self._read()
        mine = torch.tensor([joules, len(lost)], dtype=torch.float64, device=self._device)
        total, failed = distributed.all_reduce_sum(mine).tolist()
        measured = Energy(total if total > 0 and not failed else None, self.ranks, self.sensors)
        if failed:
            self._found = tuple(sensor for sensor in self._found if sensor.key not in lost)
            self._share_out()
        return measured

    def _share_out(self) -> None:
        """Agree with the other ranks on who reads what, and begin to measure."""
        everyone = distributed.gather_objects([(sensor.key, sensor.kind) for sensor in self._found])
        readers = {key: rank for rank in reversed(range(len(everyone))) for key, _ in everyone[rank]}
        kinds = dict(pair for theirs in everyone for pair in theirs)
        self.ranks = sum(bool(theirs) for theirs in everyone)
        self.sensors = dict(sorted(Counter(kinds.values()).items()))
        self._own = [sensor for sensor in self._found if readers[sensor.key] == distributed.rank()]
        self._readings = {sensor.key: _reading(sensor) for sensor in self._own}
        self._read_at = time.monotonic()

    def _read(self) -> tuple[float, set[str]]:
        """Joules of this rank's own sensors since the last time, and the keys of those that failed."""
        joules, lost = 0.0, set()
        began, self._read_at = self._read_at, time.monotonic()
        moves = self._read_at - began > _MOVES_WITHIN
        for sensor in self._own:
            before, now = self._readings[sensor.key], _reading(sensor)
            stands = now == before and moves and sensor.kind != "dram"  # idle memory may count nothing
            if before is None or now is None or now < before or stands:
                lost.add(sensor.key)
                continue
            joules += now - before
            self._readings[sensor.key] = now
        return joules, lost

    def follow(self) -> None:
        """Read counters that wrap around, so that no wrap is missed."""
        for sensor in self._own:
            _reading(sensor)


def _reading(sensor: Sensor) -> float | None:
    try:
        return sensor.read()
    except Exception:  # of the driver or the file: the sensor is gone
        return None


def _follow(meter: weakref.ref[EnergyMeter]) -> None:
    time.sleep(POLL_SECONDS)
    while found := meter():
        found.follow()
        del found  # or the meter would live as long as this thread
        time.sleep(POLL_SECONDS)


def co2_grams(joules: float | None, grid_intensity: float) -> float | None:
    """Grams of CO2 for energy from a grid of ``grid_intensity`` grams per kWh; None where not measured."""
    return None if joules is None else joules / 3.6e6 * grid_intensity
