"""The results of a benchmark: a table for the terminal, JSON, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from dist_prune.files import to_json, write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.formatting import NOT_MEASURED, count, plain

_COLORS = {"dense": style.INK, "sliced": style.BLUE, "reference": style.AMBER}
_HEADER = (
    "batch", "network", "MACs", "parameters", "latency, ms", "images/s", "gain over dense", "peak memory", "J/image",
)  # fmt: skip


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
    rows = [[row["batch"], *_cells(row, result["sizes"][row["network"]])] for row in result["measured"]]
    header = [*_HEADER, "CO2, mg/image"] if result["grid_intensity"] is not None else _HEADER
    why = f"\n\nenergy: not measured ({'; '.join(result['energy_missing'])})" if _unmeasured(result) else ""
    return f"{_caption(result)}\n\n{tabulate(rows, header, disable_numparse=True)}{why}"


def _cells(row: Mapping[str, Any], size: Mapping[str, int] | None) -> list[str]:
    if size is None or row["latency_ms"] is None:
        return [row["network"], *[NOT_MEASURED] * (len(_HEADER) - 2 + ("co2_grams_per_image" in row))]
    low, high = row["latency_ms_quartiles"]
    return [
        row["network"],
        count(size["macs"]),
        count(size["parameters"]),
        f"{row['latency_ms']:.4g} ({low:.4g} to {high:.4g})",
        f"{row['images_per_second']:,.4g}",
        f"{row['gain_over_dense']:.2f}",
        NOT_MEASURED if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.1f} MB",
        plain(row["joules_per_image"]),
        *([plain(row["co2_grams_per_image"], 1000)] if "co2_grams_per_image" in row else []),
    ]


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
    values = [row["images_per_second"] for row in rows]
    spread = [row["images_per_second_quartiles"] for row in rows]
    places = range(len(rows))
    axes.barh(places, values, 0.72, color=[_COLORS[row["network"]] for row in rows])
    around = [[v - low for v, (low, _) in zip(values, spread, strict=True)]]
    around += [[high - v for v, (_, high) in zip(values, spread, strict=True)]]
    axes.errorbar(values, places, xerr=around, fmt="none", ecolor=style.QUIET, elinewidth=1.2, capsize=2)
    for place, row, (_, high) in zip(places, rows, spread, strict=True):
        text = f"  {row['images_per_second']:,.4g}    {row['gain_over_dense']:.2f} x dense"
        text += "" if row["joules_per_image"] is None else f"    {plain(row['joules_per_image'])} J/image"
        axes.text(max(high, row["images_per_second"]), place, text, va="center", fontsize=9, color=style.INK)
    axes.set_yticks(places, [row["network"] for row in rows])
    axes.set_xlim(0, 1.4 * max(high for _, high in spread))
    axes.invert_yaxis()
