"""Pictures of a run: the mean activation of every site as a map and as lines, and curves of what it measured."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import EngFormatter

from dist_prune.monitor import names, style

Records = Sequence[Mapping[str, Any]]
_Line = npt.NDArray[np.float64]

MAP_TITLE = "Mean activation of every site"
_NEARLY = 0.05  # a mean this close to 0 or 1 counts as closed or open
_FEW = 20  # sites that have room for a large name and a rule between them, in a picture of any size
_MOST_NAMES, _MOST_NAMES_SMALL = 60, 14  # more rows than this cannot all carry a name


class GateHistory(NamedTuple):
    """Gate means that a run recorded.

    means: mean activation in [0, 1], (times, sites), NaN where a site had no gate at the time; sites: their names,
    from input to output; records: the record of each time.
    """

    means: npt.NDArray[np.float64]
    sites: list[str]
    records: list[Mapping[str, Any]]


def gate_history(records: Records) -> GateHistory:
    """Return the gate means of train or eval records; those without `gate_means` ({site: mean}) are ignored."""
    gated = [record for record in records if record.get("gate_means")]
    sites = list(dict.fromkeys(site for record in gated for site in record["gate_means"]))
    rows = [[record["gate_means"].get(site) for site in sites] for record in gated]
    return GateHistory(np.array(rows, dtype=np.float64).reshape(len(gated), len(sites)), sites, gated)


def activation_maps(titled: Sequence[tuple[str, GateHistory]]) -> Figure:
    """Draw the paper's figure 6 for each titled history: one row a site, input on top, one column an epoch.

    Dark is closed, light is open, reddish is not recorded. One map alone is large; several are small, three in a row.
    """
    alone = len(titled) == 1
    columns = min(3, len(titled))
    rows = -(-len(titled) // columns)
    most = max(len(history.sites) for _, history in titled)
    if alone:
        row = 0.3 if most <= _FEW else 0.16 if most <= _MOST_NAMES else 9.6 / most
        figure = style.new_figure(8, 1.3 + row * max(most, 4))
    else:
        figure = style.new_figure(0.8 + 4 * columns, rows * (1.4 + (0.2 * most if most <= _FEW else 2.9)))
    for number, (title, history) in enumerate(titled):
        axes = figure.add_subplot(rows, columns, number + 1)
        image = _draw_map(axes, history, _MOST_NAMES if alone else _MOST_NAMES_SMALL)
        if alone:
            style.title(axes, title, width=70)
        else:
            style.title(axes, title, size=9.5, width=38)
            axes.tick_params(axis="y", labelsize=7.5)
            axes.set_ylabel("" if number % columns else axes.get_ylabel())
    style.color_bar(figure, image, figure.axes, rows, {0: "0  closed", 0.5: "0.5", 1: "1  open"})
    return figure


def _draw_map(axes: Axes, history: GateHistory, most_names: int) -> AxesImage:
    columns, sites = history.means.shape
    image = axes.imshow(
        history.means.T, cmap=style.ACTIVATION, vmin=0, vmax=1, aspect="auto", interpolation="nearest", origin="upper"
    )
    style.quiet(axes, grid=False)
    axes.spines[:].set_visible(False)
    shown = range(0, sites, 1 if sites <= _FEW else -(-sites // most_names))
    axes.set_yticks(shown, [history.sites[i] for i in shown], fontsize=6.5 if len(shown) > _FEW else 9)
    label_epochs(axes, [record["epoch"] for record in history.records])
    axes.set_ylabel("site, from input to output")
    if sites <= _FEW:  # thin rules keep few rows apart; between many they would hide the data
        axes.hlines(np.arange(sites - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=1.2)
    return image


def label_epochs(axes: Axes, epochs: Sequence[int]) -> None:
    """Number the columns of a map, one for each of `epochs`: all of a few, otherwise multiples of 2, 5, 10, ..."""
    strides = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    stride = next(stride for stride in strides if len(epochs) / stride <= 13)
    shown = [column for column, epoch in enumerate(epochs) if epoch % stride == 0]
    axes.set_xticks(shown, [str(epochs[i]) for i in shown])
    axes.set_xlabel("epoch")


def polarization_picture(history: GateHistory) -> Figure:
    """Draw the mean activation of every site over the training steps, as lines colored by their end."""
    steps = [record["step"] for record in history.records]
    figure = style.new_figure(8, 4.2)
    axes = figure.add_subplot()
    style.quiet(axes)
    lines = [line for line in history.means.T if np.isfinite(line).any()]
    closed = [line for line in lines if line[_end(line)] <= _NEARLY]
    opened = [line for line in lines if line[_end(line)] >= 1 - _NEARLY]
    between = [line for line in lines if _NEARLY < line[_end(line)] < 1 - _NEARLY]
    width = 1.7 if len(history.sites) <= _FEW else 1.1
    _draw_lines(axes, steps, between, "in between", style.QUIET, width)
    _draw_lines(axes, steps, closed, "closed", style.CLOSED, width)
    _draw_lines(axes, steps, opened, "open", style.OPEN, width)
    axes.set(ylim=(0, 1), xlim=(steps[0], steps[-1]) if len(steps) > 1 else None)
    axes.set(xlabel="training step", ylabel="mean activation over the batch")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.xaxis.set_major_locator(style.round_ticks())
    axes.xaxis.set_major_formatter(EngFormatter())
    style.title(axes, f"Mean activation of {len(history.sites)} sites over the training", pad=14)
    return figure


def _end(line: _Line) -> int:
    """Return the last time at which a site was recorded: a decided site may have lost its gate before the end."""
    return int(np.flatnonzero(np.isfinite(line))[-1])


def _draw_lines(axes: Axes, steps: Sequence[int], lines: Sequence[_Line], label: str, color: str, width: float) -> None:
    """Draw lines, each with a white edge that separates it from those below, and their number beside the end."""
    for line in lines:
        end = _end(line)
        axes.plot(steps, line, color="white", linewidth=2 * width, zorder=3, clip_on=False)
        axes.plot(steps, line, color=color, linewidth=width, zorder=3, clip_on=False)
        axes.plot(steps[end], line[end], "o", color=color, markersize=5, zorder=4, clip_on=False)
    if lines:
        height = float(np.median([line[_end(line)] for line in lines]))
        if _NEARLY < height < 1 - _NEARLY:
            height = min(max(height, 0.08), 0.92)  # clear of the counts at 0 and 1
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        look: dict[str, Any] = {"va": "center", "color": color, "fontsize": 11, "fontweight": "bold"}
        axes.annotate(f"{len(lines)} {label}", (1, height), xytext=(10, 0), **place, **look)


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
        _draw_panel(axes, panel)
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
        # At most 1/4. Without limits a line at 0 would get an axis with negative values.
        _Panel("Polarization", "$R_{polar}$", polarization, limits=(0, 0.26)),
    ]


def _draw_panel(axes: Axes, panel: _Panel) -> None:
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
    axes.xaxis.set_major_formatter(EngFormatter())
    if panel.percent:
        axes.yaxis.set_major_formatter(style.percent_tick)
    style.title(axes, panel.title, pad=26)
    look: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": style.QUIET}
    look |= {"handlelength": 1.4, "columnspacing": 1.4, "borderaxespad": 0.2}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, **look)
