"""Curves of a run as small multiples: losses, accuracy, open gates and MACs, polarization."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_prune.monitor import names, style

Records = Sequence[Mapping[str, Any]]
Line = tuple[str, list[float], list[float]]  # label, steps, values


class _Panel(NamedTuple):
    title: str
    unit: str
    lines: list[Line]
    percent: bool = False
    limits: tuple[float, float] | None = None


def curves(train_records: Records, eval_records: Records) -> Figure:
    """Draw small multiples over the training steps, without lines and panels that have no data.

    Args:
        train_records: train records; those of their keys that are metric names are drawn.
        eval_records: eval records.
    """
    panels = [
        panel._replace(lines=lines)
        for panel in _panels(train_records, eval_records)
        if (lines := [line for line in panel.lines if line[1]])
    ]
    last = max((record["step"] for record in [*train_records, *eval_records]), default=1)
    rows, columns = max(1, (len(panels) + 1) // 2), 1 if len(panels) == 1 else 2
    figure = style.new_figure(5 * columns, 3.3 * rows)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw(axes, panel)
        axes.set_xlim(0, 1.02 * max(last, 1))  # room for the last marker
    return figure


def _panels(train: Records, evals: Records) -> list[_Panel]:
    gated = any(record.get("accuracy_consensus") is not None for record in evals)
    accuracy = [
        _line("training", train, names.ACCURACY_TRAIN),
        _line("gates dynamic" if gated else "evaluation", evals, "accuracy"),
        _line("gates fixed to the consensus", evals, "accuracy_consensus"),
    ]
    size = [_line("open gates", evals, "open_ratio"), _line("MACs under the mask", evals, "macs_ratio")]
    polarization = [_line("training", train, names.R_POLAR), _line("evaluation", evals, "r_polar")]
    return [
        _Panel("Loss", "loss", _losses(train)),
        _Panel("Accuracy", "share of images", accuracy, percent=True),
        _Panel("Size of the network", "share of the dense network", size, percent=True, limits=(0, 1.03)),
        _Panel("Polarization", "$R_{polar}$", polarization),
    ]


def _losses(records: Records) -> list[Line]:
    found = dict.fromkeys(key for record in records for key in record if names.is_loss(key))
    return [_line(names.term(name), records, name) for name in found]


def _line(label: str, records: Records, key: str) -> Line:
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return label, [float(step) for step, _ in points], [float(value) for _, value in points]


def _draw(axes: Axes, panel: _Panel) -> None:
    for (label, steps, values), color in zip(panel.lines, style.CYCLE[1:] + style.CYCLE[:1], strict=False):
        if len(values) > 60:  # noisy points would hide the trend: draw them pale behind their moving mean
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.22)
            axes.plot(steps, _moving_mean(values, len(values) // 30), color=color, linewidth=1.8, label=label)
        else:
            marker = "o" if len(values) < 25 else None
            axes.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    style.quiet(axes)
    axes.set(xlabel="training step", ylabel=panel.unit, ylim=panel.limits)
    axes.xaxis.set_major_locator(style.round_ticks())
    axes.xaxis.set_major_formatter(style.step_ticks())
    if panel.percent:
        axes.yaxis.set_major_formatter(style.percent_ticks())
    style.title(axes, panel.title, pad=26)
    look: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": style.QUIET}
    look |= {"handlelength": 1.4, "columnspacing": 1.4, "borderaxespad": 0.2}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, **look)


def _moving_mean(values: Sequence[float], width: int) -> npt.NDArray[np.float64]:
    """Return the mean of each value and up to `width` before and after it; the window shrinks at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    center = np.arange(len(values))
    low, high = np.maximum(center - width, 0), np.minimum(center + width + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)
