"""Energy over all ranks: every sensor of their machines counts once, however many ranks can read it.

Zeus (the optional extra ``energy``) lists the sensors, NVML's and RAPL's, and queries GPUs. RAPL's counters are read
here: Zeus starts a process for each of them, to see when it begins at 0 again, which a killed rank would leave behind,
and until that process has looked, its readings are too low by the whole range of the counter.
"""

import logging
import os
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dist_prune import distributed

Kind = Literal["gpu", "cpu", "dram"]
POLL_SECONDS = 10.0  # the RAPL counters of large CPUs restart every two minutes or so under load
_MOVES_WITHIN = 1.0  # seconds: a counter that stands still for longer is broken
_WHOLE = "package"  # zones of this name; "psys" is the machine with its packages, which would count twice


@dataclass(frozen=True)
class Sensor:
    """A counter of energy."""

    # Identifies it among the sensors of all machines.
    key: str
    kind: Kind
    # Returns joules since some moment in the past, or raises an error of any kind if the sensor is gone.
    read: Callable[[], float]


@dataclass(frozen=True)
class Found:
    """The sensors that this process can read, and in words what it cannot and why."""

    sensors: tuple[Sensor, ...] = ()
    missing: tuple[str, ...] = ()


class RaplCounter:
    """RAPL's counter of one zone, which wraps around after ``limit`` microjoules, in minutes under load.

    It must be read at least once between two wraps.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit, self._lock = path, limit, threading.Lock()
        self._last, self._total = self._now(), 0

    def read(self) -> float:
        """Return the joules since this object was made."""
        with self._lock:
            now = self._now()
            self._total += now - self._last + (self._limit if now < self._last else 0)
            self._last = now
            return self._total / 1e6

    def _now(self) -> int:
        return int(self._path.read_text())


def find_sensors(device: torch.device) -> Found:
    """The sensors of this process: the CPU packages and memory of its machine, and ``device`` if that is a GPU."""
    try:
        import zeus  # noqa: F401
    except ImportError:
        return Found(missing=("Zeus is not installed: pip install 'dist-prune[energy]'",))
    # What is missing is returned; Zeus's own messages would say it a second time.
    logging.getLogger("zeus").setLevel(logging.CRITICAL)
    sensors: list[Sensor] = []
    missing = []
    for search in [_rapl_sensors] + ([lambda: _gpu(device)] if device.type == "cuda" else []):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sensors += search()
        except Exception as error:  # of Zeus, of the drivers below it, or of files: none may end a run
            missing.append(" ".join(str(error).split()) or type(error).__name__)
    return Found(tuple(sensors), tuple(missing))


def _rapl_sensors() -> list[Sensor]:
    """Return every package of the machine, and its memory where that is counted apart; all of them or an error."""
    from zeus.device.cpu import rapl

    folders = [path for path in (rapl.RAPL_DIR, rapl.CONTAINER_RAPL_DIR) if os.path.isdir(path)]
    sensors = []
    for path in sorted(Path(folders[0]).glob("intel-rapl:*")) if folders else []:
        cpu = rapl.RAPLCPU(int(path.name.partition(":")[2]), folders[0])
        if not cpu.rapl_file.name.startswith(_WHOLE):
            continue
        zones: dict[Kind, Any] = {"cpu": cpu.rapl_file, "dram": cpu.dram}
        # The same in all containers of a machine, so that each of its sensors counts once.
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for kind, zone in zones.items():
            if zone is not None:
                counter = RaplCounter(Path(zone.energy_uj_path), int(zone.max_energy_range_uj))
                sensors.append(Sensor(f"{machine} {os.path.relpath(zone.path, folders[0])}", kind, counter.read))
    if not sensors:
        raise LookupError("CPU: this machine shows no RAPL counters")
    return sensors


def _gpu(device: torch.device) -> list[Sensor]:
    """Return the counter of this process's GPU: found by its UUID, since CUDA numbers GPUs otherwise than NVML."""
    import pynvml
    from zeus.device.gpu.nvidia import NVIDIAGPU, nvml_is_available

    if not nvml_is_available():
        raise LookupError("GPU: NVML is not available")
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = NVIDIAGPU(index)
        if pynvml.nvmlDeviceGetUUID(gpu.handle).removeprefix("GPU-") == uuid:
            break
    else:
        raise LookupError("GPU: NVML does not know this process's device (a MIG slice has no counter)")
    try:
        in_slices = pynvml.nvmlDeviceGetMigMode(gpu.handle)[0]
    except pynvml.NVMLError:  # of a GPU without MIG
        in_slices = False
    if in_slices:
        raise LookupError("GPU: it is divided by MIG, and NVML counts for the whole of it")
    if not gpu.supports_get_total_energy_consumption():
        raise LookupError("GPU: older than Volta, which have no counter")
    gpu.get_total_energy_consumption()  # raises here rather than in the first epoch
    return [Sensor(f"GPU {uuid}", "gpu", lambda: gpu.get_total_energy_consumption() / 1000)]


@dataclass(frozen=True)
class Energy:
    """Energy of a stretch of time, over all ranks: of all sensors, None where not measured."""

    joules: float | None = None
    # How many had a sensor.
    ranks: int = 0
    # How many there were of each kind (gpu, cpu: packages, dram).
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
            else:
                joules += now - before
                self._readings[sensor.key] = now
        return joules, lost


def _reading(sensor: Sensor) -> float | None:
    try:
        return sensor.read()
    except Exception:  # of the driver or the file: the sensor is gone
        return None


def _follow(meter: weakref.ref[EnergyMeter]) -> None:
    """Read counters that wrap around, so that no wrap is missed, as long as the meter lives."""
    time.sleep(POLL_SECONDS)
    while found := meter():
        for sensor in found._own:
            _reading(sensor)
        found = None  # or the meter would live as long as this thread
        time.sleep(POLL_SECONDS)


def co2_grams(joules: float | None, grid_intensity: float) -> float | None:
    """Grams of CO2 for energy from a grid of ``grid_intensity`` grams per kWh; None where not measured."""
    return None if joules is None else joules / 3.6e6 * grid_intensity
