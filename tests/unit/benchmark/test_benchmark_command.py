"""dist-prune benchmark: a table, JSON and a picture, and "not measured" where nothing was."""

import json
import time

import pytest
import torch
from unit_helpers import shaken

from dist_prune import UserError, build_model, save_sliced
from dist_prune.benchmark import inference, stopwatch
from dist_prune.benchmark.inference import Options, benchmark, table, write_benchmark
from dist_prune.cli.main import COMMANDS
from dist_prune.measure.energy import Found, Sensor
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.slicing import slice_network

SHAPE = (3, 16, 16)
WATTS = 50.0


def checkpoint(folder, kept):
    plain = shaken(build_model("resnet8", num_classes=10, width=4)).eval()
    return save_sliced(slice_network(plain, kept)[0].eval(), folder, input_shape=SHAPE)


@pytest.fixture
def layers(tmp_path):
    return checkpoint(tmp_path / "run" / "sliced", {"layer1.0": (), "layer3.0": ()})


@pytest.fixture
def sensor(monkeypatch):
    """A machine that always takes so many watts, and says so."""
    monkeypatch.setattr(stopwatch, "LEAST_SECONDS", 0.05)
    watts = Sensor("made up", "cpu", lambda: WATTS * time.perf_counter())
    monkeypatch.setattr(inference, "find_sensors", lambda device: Found((watts,)))


def test_the_command_shows_and_writes_all_three_networks_at_each_batch_size(layers, capsys, sensor):
    run = layers.parent
    COMMANDS["benchmark"]([str(run), "--batch", "1,3", "--seconds", "0.01"])
    shown = capsys.readouterr().out
    assert shown.count("reference") == 2
    assert "not measured" not in shown
    result = json.loads((run / "benchmark" / "speed.json").read_text())
    assert (run / "benchmark" / "speed.png").read_bytes().startswith(b"\x89PNG")
    rows = result["measured"]
    names = ["dense", "sliced", "reference"]
    assert [(row["batch"], row["network"]) for row in rows] == [(b, n) for b in (1, 3) for n in names]
    for row in rows:
        low, high = row["latency_ms_quartiles"]
        assert 0 < low <= row["latency_ms"] <= high
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["latency_ms"], rel=1e-2)
        assert row["peak_memory"] > 0
        assert row["joules_per_image"] > 0
    sizes = result["sizes"]
    assert sizes["dense"]["macs"] == count_macs(build_model("resnet8", num_classes=10, width=4), SHAPE)
    assert sizes["sliced"] == sizes["reference"]
    assert sizes["sliced"]["macs"] < sizes["dense"]["macs"]
    dense, small, _ = (row["peak_memory"] for row in rows[3:])
    assert small < dense


def test_what_has_no_reference_network_is_not_measured_and_never_zero(tmp_path):
    folder = checkpoint(tmp_path / "net", {"layer1.0.before": (0, 2)})
    result = benchmark(folder, Options(batches=(2,), seconds=0.01))
    row = result["measured"][2]
    assert {value for key, value in row.items() if key not in ("batch", "network")} == {None}
    line = next(line for line in table(result).splitlines() if "reference" in line)
    assert line.count("not measured") == 7
    assert not any(word == "0" for word in line.split())
    write_benchmark(result, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "speed.json").read_text())["sizes"]["reference"] is None


def test_energy_of_an_image_is_that_of_the_time_it_takes(layers, sensor, monkeypatch):
    class Slow(torch.nn.Module):
        def forward(self, images):
            time.sleep(0.02)

    monkeypatch.setattr(inference, "_prepared", lambda *_: Slow())
    monkeypatch.setattr(inference, "peak_memory", lambda *_: 0)
    result = benchmark(layers, Options(batches=(4,), seconds=0.01, grid_intensity=360))
    for row in result["measured"]:
        assert WATTS * 0.02 / 4 <= row["joules_per_image"] < 3 * WATTS * 0.02 / 4
        assert row["co2_grams_per_image"] == pytest.approx(row["joules_per_image"] / 1e4)
    assert "CO2, mg/image" in table(result)
    assert result["energy_sensors"] == {"cpu": 1}


def test_without_a_sensor_no_energy_is_shown_and_no_time_is_spent_on_it(layers, monkeypatch):
    monkeypatch.setattr(inference, "find_sensors", lambda device: Found(missing=("nothing is there",)))
    monkeypatch.setattr(stopwatch, "_joules", None)  # calling it would fail
    result = benchmark(layers, Options(batches=(1,), seconds=0.01, grid_intensity=360))
    for row in result["measured"]:
        assert (row["joules_per_image"], row["co2_grams_per_image"]) == (None, None)
    shown = table(result)
    assert all(line.count("not measured") == 2 for line in shown.splitlines() if line.startswith("      1"))
    assert "energy: not measured (nothing is there)" in shown


def test_options_reach_the_networks(layers, monkeypatch):
    seen, real = set(), inference.time_interleaved

    def look(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            tensors = (inputs[0], module.weight)
            layouts = [t.is_contiguous(memory_format=torch.channels_last) for t in tensors]
            seen.add((output.dtype, *layouts))

    def watched(*arguments):
        with torch.nn.modules.module.register_module_forward_hook(look):
            return real(*arguments)

    monkeypatch.setattr(inference, "time_interleaved", watched)
    options = Options(batches=(2,), seconds=0.01, bf16=True, channels_last=True)
    result = benchmark(layers, options)
    assert seen == {(torch.bfloat16, True, True)}
    assert (result["precision"], result["memory_format"]) == ("bf16 (autocast)", "channels_last")
    assert (result["threads"], result["compiled"]) == (torch.get_num_threads(), False)


def test_a_compiled_network_is_timed_and_its_memory_is_not_measured(layers, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    result = benchmark(layers, Options(batches=(1,), seconds=0.01, compile=True))
    assert len(compiled) == 3
    assert {row["peak_memory"] for row in result["measured"]} == {None}
    assert all(row["latency_ms"] > 0 for row in result["measured"])


def test_the_compiler_takes_all_three_networks(layers):
    result = benchmark(layers, Options(batches=(3,), seconds=0.01, compile=True))
    assert [row["latency_ms"] > 0 for row in result["measured"]] == [True] * 3
    assert result["compiled"]


def test_mistakes_are_one_line(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        benchmark(layers, Options(device="cuda"))
    for batch in ("0", "1,,2", "many", "-3"):
        with pytest.raises(UserError, match="whole numbers"):
            COMMANDS["benchmark"]([str(layers), f"--batch={batch}"])
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no sliced network yet"):
        benchmark(tmp_path / "begun", Options())


def test_figures_are_the_median_of_the_rounds_and_their_quartiles():
    figures = inference._figures([0.002, 0.02, 0.2], {}, batch=1)
    assert figures["latency_ms"] == 20
    assert figures["latency_ms_quartiles"] == [11, 110]
