"""The benchmark of inference: dense, sliced and reference network side by side, in a table, JSON and a picture."""

import copy
import functools
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, nn

from dist_prune.benchmark.reference_network import reference_network
from dist_prune.benchmark.stopwatch import gain, joules_of, peak_memory, time_interleaved
from dist_prune.errors import UserError
from dist_prune.files import to_json, write_atomic
from dist_prune.measure.energy import EnergyMeter, co2_grams, find_sensors
from dist_prune.measure.macs import count_macs, count_parameters
from dist_prune.models.build import Architecture
from dist_prune.monitor import style
from dist_prune.monitor.formatting import NOT_MEASURED, count, plain
from dist_prune.pruning.sliced_checkpoint import find_sliced, input_shape_of, load_sliced, read_sliced_config

DENSE, SLICED, REFERENCE = "dense", "sliced", "reference"
_COLORS = {DENSE: style.INK, SLICED: style.BLUE, REFERENCE: style.AMBER}
_CO2 = "co2_grams_per_image"


@dataclass(frozen=True)
class Options:
    """Options of a measurement. batches: images at a time; seconds: for each of them, all networks together.

    bf16: autocast; channels_last: memory layout of images and weights; compile: ``torch.compile``. grid_intensity:
    grams of CO2 per kWh, if known.
    """

    batches: Sequence[int] = (1, 32, 256)
    device: str = "cpu"
    compile: bool = False
    channels_last: bool = False
    bf16: bool = False
    seconds: float = 10.0
    grid_intensity: float | None = None


def benchmark(folder: str | Path, options: Options) -> dict[str, Any]:
    """Measure the sliced network of a run folder, or a sliced checkpoint; see ``measure``.

    Raises UserError for a folder without such a network, one without an input shape, or a device that
    is not there.
    """
    source = find_sliced(folder)
    config, shape = read_sliced_config(source), input_shape_of(source)
    architecture = Architecture(config["builder"], config["arguments"])
    measured = measure(load_sliced(source), architecture, config["kept_units"], shape, options)
    return {"network": str(source), **measured}


def measure(
    sliced: nn.Module,
    architecture: Architecture,
    kept: Mapping[str, Sequence[int]],
    input_shape: Sequence[int],
    options: Options,
) -> dict[str, Any]:
    """Time ``sliced`` interleaved with its dense network and its reference network, at each batch size.

    kept: its units by site name; input_shape: (C, H, W). Returns JSON data: the setting, each network's MACs and
    parameters, and for each batch size and network latency, throughput, gains, memory and energy; None: not
    measured.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here; remove --device cuda")
    device = torch.device(options.device)
    networks: dict[str, nn.Module] = {DENSE: architecture.build().eval(), SLICED: sliced}
    sizes: dict[str, Any] = {name: _size(network, input_shape) for name, network in networks.items()}
    reference = reference_network(architecture, kept)
    sizes[REFERENCE] = None
    if reference is not None and _size(reference, input_shape) == sizes[SLICED]:
        networks[REFERENCE], sizes[REFERENCE] = reference, sizes[SLICED]
    ready = {name: _prepared(network, device, options) for name, network in networks.items()}
    meter = EnergyMeter(find_sensors(device), device)
    rows = [row for batch in options.batches for row in _measured_at(batch, ready, input_shape, options, meter)]
    return {
        "architecture": architecture.as_dict(),
        "input_shape": list(input_shape),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": "bf16 (autocast)" if options.bf16 else "fp32",
        "memory_format": "channels_last" if options.channels_last else "contiguous",
        "compiled": options.compile,
        "grid_intensity": options.grid_intensity,
        "energy_sensors": meter.sensors,
        "energy_missing": list(meter.missing),
        "sizes": sizes,
        "measured": rows,
    }


def _size(network: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    return {"macs": count_macs(network, input_shape), "parameters": count_parameters(network)}


def _prepared(network: nn.Module, device: torch.device, options: Options) -> nn.Module:
    """Copy the network with freshly allocated tensors: the layout in its file must favor no network."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    ready = copy.deepcopy(network).eval().requires_grad_(False).to(device)
    for tensor in [*ready.parameters(), *ready.buffers()]:
        tensor.data = tensor.detach().clone(memory_format=layout if tensor.dim() == 4 else torch.preserve_format)
    return torch.compile(ready, dynamic=False) if options.compile else ready  # type: ignore[return-value]


@torch.inference_mode()
def _measured_at(
    batch: int, networks: Mapping[str, nn.Module], input_shape: Sequence[int], options: Options, meter: EnergyMeter
) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    images = torch.randn(batch, *input_shape, device=device).contiguous(memory_format=layout)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)
    runs: dict[str, Callable[[], Tensor]] = {
        name: autocast(functools.partial(network, images)) for name, network in networks.items()
    }
    timings = time_interleaved(runs, device, options.seconds)
    joules = joules_of(runs, device, meter, options.seconds)
    rows = []
    for name, run in runs.items():
        figures = _figures(timings[name], timings, batch)
        weights = sum(t.nbytes for t in [*networks[name].parameters(), *networks[name].buffers()])
        # Compiled code makes its tensors unseen on the CPU.
        weighed = device.type == "cuda" or not options.compile
        figures["peak_memory"] = peak_memory(run, device) + weights if weighed else None
        energy = joules[name]
        each = figures["joules_per_image"] = None if energy is None else energy / batch
        if options.grid_intensity is not None:
            figures[_CO2] = co2_grams(each, options.grid_intensity)
        rows.append({"batch": batch, "network": name, **figures})
    if REFERENCE not in runs:
        rows.append({**dict.fromkeys(rows[0]), "batch": batch, "network": REFERENCE})
    return rows


def _figures(seconds: Sequence[float], others: Mapping[str, Sequence[float]], batch: int) -> dict[str, Any]:
    """Latency in milliseconds, images a second (quartiles as the spread), and gains over the other networks."""
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    gains = {f"gain_over_{name}": others.get(name) for name in (DENSE, REFERENCE)}
    return {
        "rounds": len(seconds),
        "latency_ms": round(1000 * median, 4),
        "latency_ms_quartiles": [round(1000 * low, 4), round(1000 * high, 4)],
        "images_per_second": round(batch / median, 2),
        "images_per_second_quartiles": [round(batch / high, 2), round(batch / low, 2)],
        **{key: None if other is None else round(gain(seconds, other), 4) for key, other in gains.items()},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine()])[0]


def write_benchmark(result: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """Write speed.json and speed.png into ``folder``; returns their paths."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = [target / "speed.json", target / "speed.png"]
    write_atomic(written[0], (to_json(result, indent=2) + "\n").encode())
    write_atomic(written[1], style.png(speed_picture(result)))
    return written


def table(result: Mapping[str, Any]) -> str:
    """The measurements as text: medians, with the quartiles of the latency as its spread."""
    rows: list[dict[str, Any]] = []
    for row in result["measured"]:
        place = {"batch": row["batch"], "network": row["network"]}
        if row["latency_ms"] is None:  # never in the first row, which is the dense network's
            rows.append(dict.fromkeys(rows[0], NOT_MEASURED) | place)
        else:
            rows.append(place | _cells(row, result["sizes"][row["network"]]))
    why = f"\n\nenergy: not measured ({'; '.join(result['energy_missing'])})" if _unmeasured(result) else ""
    return f"{_caption(result)}\n\n{tabulate(rows, 'keys', disable_numparse=True)}{why}"


def _cells(row: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, str]:
    low, high = row["latency_ms_quartiles"]
    memory = row["peak_memory"]
    cells = {
        "MACs": count(size["macs"]),
        "parameters": count(size["parameters"]),
        "latency, ms": f"{row['latency_ms']:.4g} ({low:.4g} to {high:.4g})",
        "images/s": f"{row['images_per_second']:,.4g}",
        "gain over dense": f"{row['gain_over_dense']:.2f}",
        "peak memory": NOT_MEASURED if memory is None else f"{memory / 1e6:.1f} MB",
        "J/image": plain(row["joules_per_image"]),
    }
    return cells | ({"CO2, mg/image": plain(row[_CO2], 1000)} if _CO2 in row else {})


def _unmeasured(result: Mapping[str, Any]) -> bool:
    return all(row["joules_per_image"] is None for row in result["measured"])


def _caption(result: Mapping[str, Any]) -> str:
    threads = f", {result['threads']} thread{'s' * (result['threads'] > 1)}"
    compiled = ", compiled" if result["compiled"] else ""
    return (
        f"{result['architecture']['builder']} at {' x '.join(map(str, result['input_shape']))}, "
        f"{result['precision']}, {result['memory_format']}{compiled}; {result['device']}{threads}, "
        f"torch {result['torch']}"
    )


def speed_picture(result: Mapping[str, Any]) -> Figure:
    """A panel for each batch size: throughput of each network as a bar, with its quartiles as a whisker."""
    batches = list(dict.fromkeys(row["batch"] for row in result["measured"]))
    figure = style.new_figure(8, 0.9 + 1.35 * len(batches))
    panels = figure.subplots(len(batches), 1, squeeze=False)[:, 0]
    for axes, batch in zip(panels, batches, strict=True):
        rows = [row for row in result["measured"] if row["batch"] == batch and row["latency_ms"] is not None]
        _draw(axes, rows)
        style.title(axes, f"batch {batch}", pad=4, size=10)
    heading = "Images a second: medians, with quartiles as whiskers"
    figure.suptitle(heading, x=0.01, ha="left", fontsize=12, fontweight="bold", color=style.INK)
    energy = f"; energy {NOT_MEASURED}" if _unmeasured(result) else ""
    figure.supxlabel(_caption(result) + energy, x=0.01, ha="left", fontsize=8, color=style.QUIET)
    return figure


def _draw(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    style.quiet(axes, grid=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    values = np.array([row["images_per_second"] for row in rows])
    low, high = np.array([row["images_per_second_quartiles"] for row in rows]).T
    places = range(len(rows))
    axes.barh(places, values, 0.72, color=[_COLORS[row["network"]] for row in rows])
    look: dict[str, Any] = {"fmt": "none", "ecolor": style.QUIET, "elinewidth": 1.2, "capsize": 2}
    axes.errorbar(values, places, xerr=[values - low, high - values], **look)
    for place, row in zip(places, rows, strict=True):
        text = f"  {row['images_per_second']:,.4g}    {row['gain_over_dense']:.2f} x dense"
        text += "" if row["joules_per_image"] is None else f"    {plain(row['joules_per_image'])} J/image"
        axes.text(max(high[place], values[place]), place, text, va="center", fontsize=9, color=style.INK)
    axes.set_yticks(places, [row["network"] for row in rows])
    axes.set_xlim(0, 1.4 * high.max())
    axes.invert_yaxis()
