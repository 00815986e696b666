"""Energy over ranks: every sensor counts once, whichever ranks can read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenarios
import torch
from powercap import LIMIT, make_zone, spend
from ranks import run_ranks

from dist_prune import distributed
from dist_prune.measure.energy import Energy, EnergyMeter, Found, RaplCounter, Sensor

CPU = torch.device("cpu")


def package(machine: str, file: Path) -> Sensor:
    return Sensor(f"{machine} package-0", "cpu", RaplCounter(file, LIMIT).read)


def spent_by(meter: EnergyMeter, *spent: tuple[Path, float]) -> tuple[Energy, dict[str, int]]:
    """What all ranks measure while rank 0 lets counters rise, and the collectives that it takes."""
    torch.distributed.barrier()
    if distributed.rank() == 0:
        for file, joules in spent:
            spend(file, joules)
    torch.distributed.barrier()
    with scenarios.counted_collectives() as calls:
        return meter.take(), {kind: len(sizes) for kind, sizes in calls.items()}


def two_ranks_of_one_machine(folder: Path):
    file = folder / "energy_uj"
    gpu = Sensor(f"GPU {distributed.rank()}", "gpu", iter([0.0, 2.0, 4.0, 4.5]).__next__)
    meter = EnergyMeter(Found((package("here", file), gpu)), CPU)
    return spent_by(meter, (file, 0.5))


def test_the_packages_of_a_machine_count_once_and_every_gpu_counts(tmp_path):
    make_zone(tmp_path, "package-0")
    for energy, collectives in run_ranks(2, two_ranks_of_one_machine, tmp_path):
        assert energy == Energy(pytest.approx(0.5 + 2 * 2.0), 2, {"cpu": 1, "gpu": 2})
        assert collectives == {"all_reduce": 1}


def two_machines(folder: Path, only_the_second: bool):
    files = [folder / str(machine) / "energy_uj" for machine in range(2)]
    rank = distributed.rank()
    found = Found() if only_the_second and rank == 0 else Found((package(str(rank), files[rank]),))
    return spent_by(EnergyMeter(found, CPU), (files[0], 0.25), (files[1], 0.5))


def test_machines_add_up(tmp_path):
    for machine in range(2):
        make_zone(tmp_path / str(machine), "package-0")
    for energy, _ in run_ranks(2, two_machines, tmp_path, False):
        assert energy == Energy(pytest.approx(0.75), 2, {"cpu": 2})


def test_a_rank_without_a_sensor_is_told_from_one_with(tmp_path):
    for machine in range(2):
        make_zone(tmp_path / str(machine), "package-0")
    for energy, _ in run_ranks(2, two_machines, tmp_path, True):
        assert energy == Energy(pytest.approx(0.5), 1, {"cpu": 1})


def lost_by_the_first_rank(folder: Path):
    """Both ranks know the counter; rank 0, which reads it, cannot any more after a while."""
    mine = folder / "energy_uj" if distributed.rank() else folder / "link"
    meter = EnergyMeter(Found((package("here", mine),)), CPU)
    torch.distributed.barrier()
    if distributed.rank() == 0:
        mine.unlink()
    return [spent_by(meter, (folder / "energy_uj", 0.25))[0] for _ in range(2)]


def test_the_next_rank_of_a_machine_takes_over_a_sensor_that_the_first_has_lost(tmp_path):
    file = make_zone(tmp_path, "package-0")
    (tmp_path / "link").symlink_to(file)
    for first, second in run_ranks(2, lost_by_the_first_rank, tmp_path):
        assert first.joules is None
        assert second == Energy(pytest.approx(0.25), 1, {"cpu": 1})


def without_any():
    meter = EnergyMeter(Found(), CPU)
    with scenarios.counted_collectives() as calls:
        taken = [meter.take() for _ in range(3)]
    return taken, dict(calls)


def test_without_any_sensor_an_epoch_costs_no_collective():
    for taken, collectives in run_ranks(2, without_any):
        assert taken == [Energy(None, 0, {})] * 3
        assert collectives == {}
