"""The energy sensors of a machine, found through Zeus (the optional extra ``energy``): NVML and RAPL counters.

Zeus lists the sensors and queries GPUs. RAPL's counters are read here: Zeus starts a process for each of
them, to see when it begins at 0 again, which a killed rank would leave behind, and until that process has looked, its
readings are too low by the whole range of the counter.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["gpu", "cpu", "dram"]
_WHOLE = "package"  # zones of this name; "psys" is the machine with its packages, which would count twice


@dataclass(frozen=True)
class Sensor:
    """A counter of energy.

    key: identifies it among the sensors of all machines; kind: what it measures; read: returns joules since some moment
    in the past, or raises an error of any kind if the sensor is gone.
    """

    key: str
    kind: Kind
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
    for search in [_rapl_zones] + ([lambda: _gpu(device)] if device.type == "cuda" else []):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sensors += search()
        except Exception as error:  # of Zeus, of the drivers below it, or of files: none may end a run
            missing.append(" ".join(str(error).split()) or type(error).__name__)
    return Found(tuple(sensors), tuple(missing))


def _rapl_zones() -> list[Sensor]:
    """Return every package of the machine, and its memory where that is counted apart; all of them or an error."""
    from zeus.device.cpu import rapl

    folder = next((path for path in (rapl.RAPL_DIR, rapl.CONTAINER_RAPL_DIR) if os.path.isdir(path)), "")
    zones: list[tuple[Kind, Any]] = []
    for path in sorted(Path(folder).glob("intel-rapl:*")) if folder else []:
        cpu = rapl.RAPLCPU(int(path.name.partition(":")[2]), folder)
        if cpu.rapl_file.name.startswith(_WHOLE):
            zones += [("cpu", cpu.rapl_file), *([("dram", cpu.dram)] if cpu.dram else [])]  # type: ignore[list-item]
    if not zones:
        raise LookupError("CPU: this machine shows no RAPL counters")
    # The same in all containers of a machine, so that each of its sensors counts once.
    machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    sensors = []
    for kind, zone in zones:
        counter = RaplCounter(Path(zone.energy_uj_path), int(zone.max_energy_range_uj))
        sensors.append(Sensor(f"{machine} {os.path.relpath(zone.path, folder)}", kind, counter.read))
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
