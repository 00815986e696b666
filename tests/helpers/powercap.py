"""A tree of files as the kernel shows RAPL's counters, for tests; machines that run them seldom have one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 1_000_000  # microjoules after which a counter begins at 0 again, if nothing else is said


def make_zone(path: Path, name: str, microjoules: int = 0, limit: int = LIMIT) -> Path:
    """One zone; returns the file of its counter."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def make_machine(folder: Path) -> dict[str, Path]:
    """Two packages, memory and cores of the first, and the zone of the whole machine; counters by name."""
    return {
        "package-0": make_zone(folder / "intel-rapl:0", "package-0", 100),
        "core": make_zone(folder / "intel-rapl:0" / "intel-rapl:0:0", "core", 200),
        "dram": make_zone(folder / "intel-rapl:0" / "intel-rapl:0:1", "dram", 300),
        "package-1": make_zone(folder / "intel-rapl:1", "package-1", 400),
        "psys": make_zone(folder / "intel-rapl:2", "psys", 500),
    }


def spend(counter: Path, joules: float) -> None:
    """Let a counter rise, and begin at 0 again where it ends."""
    now = int(counter.read_text()) + round(1e6 * joules)
    limit = int((counter.parent / "max_energy_range_uj").read_text())
    beside = counter.with_name(f"{counter.name}.tmp")
    beside.write_text(f"{now % limit}\n")  # as the kernel does: no reader ever finds an empty file
    beside.replace(counter)


@contextlib.contextmanager
def burning(counter: Path, watts: float) -> Iterator[list[float]]:
    """Meanwhile the counter rises by so many watts; yields a list to which the joules spent so far are added."""
    spent, done = [0.0], threading.Event()

    def burn() -> None:
        last = time.monotonic()
        while not done.wait(0.005):
            now = time.monotonic()
            spend(counter, watts * (now - last))
            spent[0] += watts * (now - last)
            last = now

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        yield spent
    finally:
        done.set()
        thread.join()
