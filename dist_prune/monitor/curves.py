"""Curves of a run as small multiples: losses, accuracy, open gates and MACs, polarization."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dist_prune.monitor import names, style

Records = Sequence[Mapping[str, Any]]


class _Panel(NamedTuple):
    title: str
    unit: str
    lines: list[tuple[str, Records, str]]  # label, records, key
    percent: bool = False
    limits: tuple[float, float] | None = None


def curves(train: Records, evals: Records) -> Figure:
    """Draw the train and eval records of a run over its training steps, without lines and panels that have no data."""
    panels = [
        panel._replace(lines=lines)
        for panel in _panels(train, evals)
        if (lines := [line for line in panel.lines if any(record.get(line[2]) is not None for record in line[1])])
    ]
    last = max((record["step"] for record in [*train, *evals]), default=1)
    rows, columns = max(1, (len(panels) + 1) // 2), 1 if len(panels) == 1 else 2
    figure = style.new_figure(5 * columns, 3.3 * rows)
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw(axes, panel)
        axes.set_xlim(0, 1.02 * max(last, 1))  # room for the last marker
    return figure


def _panels(train: Records, evals: Records) -> list[_Panel]:
    losses = dict.fromkeys(key for record in train for key in record if key.startswith(names.LOSS))
    gated = any(record.get("accuracy_consensus") is not None for record in evals)
    accuracy = [
        ("training", train, names.ACCURACY_TRAIN),
        ("gates dynamic" if gated else "evaluation", evals, "accuracy"),
        ("gates fixed to the consensus", evals, "accuracy_consensus"),
    ]
    size = [("open gates", evals, "open_ratio"), ("MACs under the mask", evals, "macs_ratio")]
    polarization = [("training", train, names.R_POLAR), ("evaluation", evals, "r_polar")]
    return [
        _Panel("Loss", "loss", [(key.removeprefix(names.LOSS), train, key) for key in losses]),
        _Panel("Accuracy", "share of images", accuracy, percent=True),
        _Panel("Size of the network", "share of the dense network", size, percent=True, limits=(0, 1.03)),
        _Panel("Polarization", "$R_{polar}$", polarization),
    ]


def _draw(axes: Axes, panel: _Panel) -> None:
    for (label, records, key), color in zip(panel.lines, style.CYCLE[1:] + style.CYCLE[:1], strict=False):
        known = [record for record in records if record.get(key) is not None]
        steps, values = [record["step"] for record in known], [record[key] for record in known]
        if len(values) > 60:  # noisy points would hide the trend: draw them pale behind their moving mean
            axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.22)
            window = np.ones(2 * (len(values) // 30) + 1)
            # The number of values in the window divides, because the window shrinks at the ends.
            mean = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
            axes.plot(steps, mean, color=color, linewidth=1.8, label=label)
        else:
            marker = "o" if len(values) < 25 else None
            axes.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    style.quiet(axes)
    axes.set(xlabel="training step", ylabel=panel.unit, ylim=panel.limits)
    axes.xaxis.set_major_locator(style.round_ticks())
    axes.xaxis.set_major_formatter(style.step_tick)
    if panel.percent:
        axes.yaxis.set_major_formatter(style.percent_tick)
    style.title(axes, panel.title, pad=26)
    look: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": style.QUIET}
    look |= {"handlelength": 1.4, "columnspacing": 1.4, "borderaxespad": 0.2}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, **look)
