"""The stopwatch: turns, medians and spread, and the bytes that live at once."""

import statistics
import time

import pytest
import torch
from torch import nn

from dist_prune.benchmark.stopwatch import LEAST_ROUNDS, WARM_UP, gain, peak_memory, time_interleaved

CPU = torch.device("cpu")


def test_networks_take_turns_and_each_is_first_equally_often():
    called = []
    runs = {name: (lambda name=name: called.append(name)) for name in "abc"}
    timings = time_interleaved(runs, CPU, seconds=0)
    rounds = ["".join(called[i : i + 3]) for i in range(0, len(called), 3)]
    assert rounds == ["abc"] * WARM_UP + ["abc", "bca", "cab", "abc", "bca"]
    assert {len(seconds) for seconds in timings.values()} == {LEAST_ROUNDS}


def test_a_slower_network_is_measured_to_be_slower():
    timings = time_interleaved({"slow": lambda: time.sleep(0.02), "quick": lambda: None}, CPU, seconds=0)
    assert statistics.median(timings["slow"]) >= 0.02
    assert gain(timings["quick"], timings["slow"]) > 2


def test_a_gain_is_taken_within_rounds_so_that_a_drifting_machine_does_not_change_it():
    assert gain([1.0, 10.0, 100.0], over=[2.0, 20.0, 200.0]) == 2


@torch.inference_mode()
def test_memory_is_what_lives_at_once_and_not_what_was_there_before():
    given = torch.zeros(1000)

    def run():
        a = given + 1
        b = a + 1
        del a
        c = b * 2
        c += 1
        return c.view(10, 100)

    assert peak_memory(run, CPU) == 2 * 1000 * 4
    assert peak_memory(lambda: given.view(10, 100), CPU) == 0


@torch.inference_mode()
@pytest.mark.parametrize("width", [4, 8])
def test_memory_of_a_network_grows_with_its_maps(width):
    net, x = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.ReLU(inplace=True)), torch.zeros(2, 3, 8, 8)
    assert peak_memory(lambda: net(x), CPU) == 2 * (2 * width * 64 * 4)
