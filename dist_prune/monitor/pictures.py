"""Pictures of how gates polarize: the mean activation of every site over the epochs, as a map and as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_prune.monitor import style
from dist_prune.monitor.activation_map import MOST_NAMES, add_activation_bar, draw_activation_map

_Line = npt.NDArray[np.float64]

_NEARLY = 0.05  # a mean this close to 0 or 1 counts as closed or open


def mean_activation_picture(history: npt.ArrayLike, site_names: Sequence[str], epochs: Sequence[int]) -> Figure:
    """Draw the paper's figure 6: one row a site, from input (top) to output, one column an epoch.

    Dark is closed, light is open, reddish is not recorded.

    Args:
        history: mean activation, (epochs, sites), each in [0, 1] or NaN.
        site_names: the sites from input to output.
        epochs: the epoch of each column.
    """
    table = np.asarray(history, dtype=np.float64)
    sites = len(site_names)
    row = 0.3 if sites <= 20 else 0.16 if sites <= MOST_NAMES else 9.6 / sites
    figure = style.new_figure(8, 1.3 + row * max(sites, 4))
    axes = figure.add_subplot()
    image = draw_activation_map(axes, table, site_names, epochs)
    style.title(axes, "Mean activation of every site")
    add_activation_bar(figure, image, [axes])
    return figure


def polarization_picture(
    history: npt.ArrayLike, site_names: Sequence[str], positions: Sequence[float], xlabel: str = "training step"
) -> Figure:
    """Draw the mean activation of every site over the training, as lines colored by their end.

    Args:
        history: mean activation, (times, sites), each in [0, 1] or NaN.
        site_names: the sites from input to output.
        positions: the step or epoch of each time.
        xlabel: the unit of `positions`.
    """
    table = np.asarray(history, dtype=np.float64)
    figure = style.new_figure(8, 4.2)
    axes = figure.add_subplot()
    style.quiet(axes)
    lines = [line for line in table.T if np.isfinite(line).any()]
    closed = [line for line in lines if line[_end(line)] <= _NEARLY]
    opened = [line for line in lines if line[_end(line)] >= 1 - _NEARLY]
    between = [line for line in lines if _NEARLY < line[_end(line)] < 1 - _NEARLY]
    width = 1.7 if len(site_names) <= 20 else 1.1
    _draw(axes, positions, between, "in between", style.QUIET, width)
    _draw(axes, positions, closed, "closed", style.CLOSED, width)
    _draw(axes, positions, opened, "open", style.OPEN, width)
    axes.set(ylim=(0, 1), xlim=(positions[0], positions[-1]) if len(positions) > 1 else None, xlabel=xlabel)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.xaxis.set_major_locator(style.round_ticks())
    axes.xaxis.set_major_formatter(style.step_ticks())
    axes.set_ylabel("mean activation over the batch")
    style.title(axes, f"Mean activation of {len(site_names)} sites over the training", pad=14)
    return figure


def _end(line: _Line) -> int:
    """Return the last time at which a site was recorded: a decided site may have lost its gate before the end."""
    return int(np.flatnonzero(np.isfinite(line))[-1])


def _draw(axes: Axes, positions: Sequence[float], lines: Sequence[_Line], label: str, color: str, width: float) -> None:
    """Draw lines, each with a white edge that separates it from those below, and their number beside the end."""
    for line in lines:
        end = _end(line)
        axes.plot(positions, line, color="white", linewidth=2 * width, zorder=3, clip_on=False)
        axes.plot(positions, line, color=color, linewidth=width, zorder=3, clip_on=False)
        axes.plot(positions[end], line[end], "o", color=color, markersize=5, zorder=4, clip_on=False)
    if lines:
        height = float(np.median([line[_end(line)] for line in lines]))
        if _NEARLY < height < 1 - _NEARLY:
            height = min(max(height, 0.08), 0.92)  # clear of the counts at 0 and 1
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        look: dict[str, Any] = {"va": "center", "color": color, "fontsize": 11, "fontweight": "bold"}
        axes.annotate(f"{len(lines)} {label}", (1, height), xytext=(10, 0), **place, **look)


def gate_history(
    records: Sequence[Mapping[str, Any]],
) -> tuple[npt.NDArray[np.float64], list[str], list[Mapping[str, Any]]]:
    """Return the gate means of train or eval records as a table for the two pictures.

    Args:
        records: records of one kind; those without `gate_means` ({site: mean activation}) are ignored.

    Returns:
        The table, (times, sites), NaN where a site had no gate at the time; the sites in order of first
        appearance; and the record of each time.
    """
    gated = [record for record in records if record.get("gate_means")]
    sites = list(dict.fromkeys(site for record in gated for site in record["gate_means"]))
    rows = [[record["gate_means"].get(site) for site in sites] for record in gated]
    return np.array(rows, dtype=np.float64).reshape(len(gated), len(sites)), sites, gated
