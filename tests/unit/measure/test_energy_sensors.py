"""What is found through Zeus: RAPL zones that do not overlap, the GPU of this process, and why there is none."""

import builtins
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from powercap import make_machine, make_zone, spend

from dist_prune.measure.energy import EnergyMeter, find_sensors

CPU = torch.device("cpu")


@pytest.fixture
def rapl(tmp_path, monkeypatch):
    """Zeus's module, which looks for counters in a folder that is not there yet."""
    module = pytest.importorskip("zeus.device.cpu.rapl", reason="the extra 'energy' is not installed")
    monkeypatch.setattr(module, "RAPL_DIR", str(tmp_path / "intel-rapl"))
    monkeypatch.setattr(module, "CONTAINER_RAPL_DIR", str(tmp_path / "container"))
    return module


def test_without_zeus_nothing_is_found_and_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "zeus":
            raise ImportError
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    found = find_sensors(CPU)
    assert found.sensors == ()
    assert "dist-prune[energy]" in found.missing[0]


def test_a_machine_without_counters_says_so(rapl):
    assert find_sensors(CPU).missing == ("CPU: this machine shows no RAPL counters",)


@pytest.mark.parametrize("place", ["intel-rapl", "container"])
def test_packages_and_memory_count_and_zones_that_overlap_them_do_not(rapl, tmp_path, place):
    files = make_machine(tmp_path / place)
    found = find_sensors(CPU)
    assert sorted(sensor.kind for sensor in found.sensors) == ["cpu", "cpu", "dram"]
    meter = EnergyMeter(found, CPU)
    for number, file in enumerate(files.values()):
        spend(file, 0.01 * 2**number)
    assert meter.take().joules == pytest.approx(0.01 + 0.04 + 0.08)


def test_counting_starts_no_process(rapl, tmp_path):
    make_machine(tmp_path / "intel-rapl")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text().split()  # what other tests have left, such as a forkserver
    meter = EnergyMeter(find_sensors(CPU), CPU)
    meter.take()
    assert set(children.read_text().split()) <= set(before)


def test_where_one_package_cannot_be_read_none_counts(rapl, tmp_path, monkeypatch):
    files = make_machine(tmp_path / "intel-rapl")
    files["package-1"].unlink()
    files["package-1"].mkdir()  # root may read whatever its mode says
    found = find_sensors(CPU)
    assert found.sensors == ()
    assert len(found.missing) == 1


def test_no_permission_is_told_with_where_to_read_on(rapl, tmp_path, monkeypatch):
    make_zone(tmp_path / "intel-rapl" / "intel-rapl:0", "package-0")
    real = builtins.open

    def refuse(path, *rest, **options):
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    found = find_sensors(CPU)
    assert found.sensors == ()
    assert "permission" in found.missing[0]


class FakeGpu:
    """What Zeus's NVIDIAGPU is asked for here."""

    volta = True

    def __init__(self, index):
        self.handle = index

    def supports_get_total_energy_consumption(self):
        return self.volta

    def get_total_energy_consumption(self):
        return 1000 * (self.handle + 1)  # millijoules


@pytest.fixture
def nvml(monkeypatch, rapl):
    """NVML with three GPUs, which CUDA numbers in another order; there is none where these tests run."""
    nvidia = pytest.importorskip("zeus.device.gpu.nvidia")
    import pynvml

    monkeypatch.setattr(nvidia, "NVIDIAGPU", FakeGpu)
    monkeypatch.setattr(nvidia, "nvml_is_available", lambda: True)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{'abc'[handle]}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMigMode", lambda handle: (0, 0))
    uuids = {"cuda:0": "c", "cuda:1": "a", "cuda:2": "b", "cuda:3": "a slice of c"}
    properties = lambda device: SimpleNamespace(uuid=uuids[str(device)])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return pynvml


@pytest.mark.parametrize(("number", "uuid", "joules"), [(0, "c", 3.0), (1, "a", 1.0), (2, "b", 2.0)])
def test_a_rank_measures_its_own_gpu_whatever_its_number_is_to_nvml(nvml, number, uuid, joules):
    (sensor,) = find_sensors(torch.device("cuda", number)).sensors
    assert (sensor.kind, sensor.key, sensor.read()) == ("gpu", f"GPU {uuid}", joules)


def test_gpus_of_the_machine_do_not_count_for_a_run_on_its_cpus(nvml):
    assert find_sensors(CPU).sensors == ()


@pytest.mark.parametrize("device", ["sliced", "in slices", "old", "without NVML"])
def test_gpus_without_a_counter_of_their_own_are_not_measured(nvml, monkeypatch, device):
    from zeus.device.gpu import nvidia

    if device == "in slices":
        monkeypatch.setattr(nvml, "nvmlDeviceGetMigMode", lambda handle: (1, 1))
    if device == "old":
        monkeypatch.setattr(FakeGpu, "volta", False)
    if device == "without NVML":
        monkeypatch.setattr(nvidia, "nvml_is_available", lambda: False)
    found = find_sensors(torch.device("cuda", 3 if device == "sliced" else 0))
    assert found.sensors == ()
    assert sum(line.startswith("GPU: ") for line in found.missing) == 1
