"""Energy is the sum of what counters rose by, or it is not measured; it is never 0 and never a guess."""

import gc
import threading

import pytest
import torch
from powercap import LIMIT, make_zone, spend

from dist_prune.measure import energy
from dist_prune.measure.energy import EnergyMeter, Found, RaplCounter, Sensor, co2_grams

CPU = torch.device("cpu")


def zone(folder, name="package-0", kind="cpu", microjoules=0):
    file = make_zone(folder / name, name, microjoules)
    return Sensor(f"machine {name}", kind, RaplCounter(file, LIMIT).read), file


def test_without_a_sensor_energy_is_not_measured_and_no_collective_is_spent(monkeypatch):
    meter = EnergyMeter(Found(missing=("why",)), CPU)
    monkeypatch.setattr(energy.distributed, "all_reduce_sum", None)  # calling it would fail
    assert meter.take() == energy.Energy(None, 0, {})
    assert meter.missing == ("why",)


def test_all_counters_of_a_process_add_up_from_one_call_to_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_MOVES_WITHIN", 600.0)  # some stand still here, and the machine may be slow
    package, first = zone(tmp_path, "package-0")
    memory, second = zone(tmp_path, "dram", "dram")
    gpu = [7.0]
    meter = EnergyMeter(Found((package, memory, Sensor("gpu", "gpu", lambda: gpu[0]))), CPU)
    spend(first, 0.25)
    spend(second, 0.5)
    gpu[0] += 2
    taken = meter.take()
    assert taken.joules == pytest.approx(2.75)
    assert (taken.ranks, taken.sensors) == (1, {"cpu": 1, "dram": 1, "gpu": 1})
    spend(first, 0.125)
    assert meter.take().joules == pytest.approx(0.125)


def test_a_counter_that_begins_at_0_again_loses_nothing(tmp_path):
    package, file = zone(tmp_path, microjoules=LIMIT - 100_000)
    meter = EnergyMeter(Found((package,)), CPU)
    spend(file, 0.3)
    assert int(file.read_text()) == 200_000
    assert meter.take().joules == pytest.approx(0.3)


def test_no_round_of_a_counter_is_missed_between_two_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POLL_SECONDS", 0.01)
    polled, reading = threading.Event(), energy._reading
    monkeypatch.setattr(energy, "_reading", lambda sensor: (reading(sensor), polled.set())[0])
    package, file = zone(tmp_path)
    meter = EnergyMeter(Found((package,)), CPU)
    for _ in range(5):  # three rounds and a half
        spend(file, 0.7)
        for _ in range(2):  # the second one that ends has begun from now on
            polled.clear()
            assert polled.wait(timeout=30)
    assert meter.take().joules == pytest.approx(3.5)


def test_the_thread_that_follows_counters_ends_with_its_meter(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POLL_SECONDS", 0.01)
    before = set(threading.enumerate())
    meter = EnergyMeter(Found((zone(tmp_path)[0],)), CPU)
    (thread,) = set(threading.enumerate()) - before
    del meter
    gc.collect()
    thread.join(timeout=5)
    assert not thread.is_alive()


def test_a_sensor_that_disappears_leaves_its_stretch_unmeasured_and_the_others_go_on(tmp_path):
    package, file = zone(tmp_path, "package-0")
    gone, lost = zone(tmp_path, "package-1")
    meter = EnergyMeter(Found((package, gone)), CPU)
    lost.unlink()
    spend(file, 0.25)
    assert meter.take().joules is None
    spend(file, 0.5)
    taken = meter.take()
    assert (taken.joules, taken.ranks, taken.sensors) == (pytest.approx(0.5), 1, {"cpu": 1})
    file.unlink()
    assert meter.take().joules is None
    assert meter.take() == energy.Energy(None, 0, {})


@pytest.mark.parametrize("reading", ["falls", "stands still"])
def test_a_counter_that_does_not_rise_is_no_sensor(monkeypatch, reading):
    values = iter([5.0, 4.0, 4.0] if reading == "falls" else [5.0, 5.0, 5.0])
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(energy, "_follow", lambda _: None)
    meter = EnergyMeter(Found((Sensor("gpu", "gpu", lambda: next(values)),)), CPU)
    assert meter.take().joules is None
    assert meter.ranks == 0


def test_what_cannot_be_told_from_nothing_is_not_0():
    meter = EnergyMeter(Found((Sensor("gpu", "gpu", lambda: 5.0),)), CPU)
    taken = meter.take()  # sooner than the counter moves
    assert (taken.joules, taken.ranks) == (None, 1)


def test_grams_follow_from_kilowatt_hours():
    assert co2_grams(3.6e6, 400) == 400
    assert co2_grams(None, 400) is None
