"""The results of a benchmark: a table for the terminal, JSON, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from dist_prune.files import to_json, write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.formatting import NOT_MEASURED, count, plain

_CO2 = "co2_grams_per_image"
_COLORS = {"dense": style.INK, "sliced": style.BLUE, "reference": style.AMBER}


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
