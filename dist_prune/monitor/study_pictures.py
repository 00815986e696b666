"""What a study paid for what it saved: accuracy against pruned share and MACs (arXiv 2302.10798, figures 4, 5)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dist_prune.monitor import style
from dist_prune.monitor.compare import Stat
from dist_prune.monitor.study_series import Point, Series

_MARKERS = ("o", "s", "^", "D", "v")  # as many as do not divide the number of colours


class _Panel(NamedTuple):
    title: str
    xlabel: str
    ylabel: str
    yticks: FuncFormatter
    x: Callable[[Point], Stat | None]
    y: Callable[[Point], Stat | None]


_PRUNED = _Panel(
    "Accuracy and pruned share",
    "share of units or parameters taken out",
    "accuracy",
    style.percent_ticks(),
    lambda point: point.pruned,
    lambda point: point.accuracy,
)
_SAVED = _Panel(
    "Accuracy and saved MACs",
    "MACs saved",
    "accuracy",
    style.percent_ticks(),
    lambda point: point.saved,
    lambda point: point.accuracy,
)
_DROP = _Panel(
    "What the pruning cost",
    "MACs saved",
    "points of accuracy below the dense network",
    style.point_ticks(),
    lambda point: point.saved,
    lambda point: point.drop,
)


def trade_off_picture(series: Sequence[Series]) -> Figure | None:
    """Accuracy of the sliced network against what was taken out; bars are deviations over seeds.

    The pruned share is drawn where there are naive baselines, the drop where there is a dense group; the
    naive baselines fall so deep that they would flatten the drop, and are left out there.

    Returns:
        None where there are not two points to compare.
    """
    if sum(len(one.points) for one in series) < 2:
        return None
    own = [one for one in series if not one.naive]
    panels = [(_PRUNED, series)] if len(own) < len(series) else []
    panels += [(_SAVED, series)]
    panels += [(_DROP, own)] if any(point.drop for one in own for point in one.points) else []
    figure = style.new_figure(1.2 + 4.6 * len(panels), 4.6 + 0.2 * len(series))
    key: dict[str, Artist] = {}  # one entry for all panels
    for number, (panel, shown) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for index, one in enumerate(shown):
            drawn = _draw(axes, panel, one, index)
            if drawn is not None:
                key[one.label] = drawn.lines[0]  # without its bars
        _finish(axes, panel)
    figure.legend(
        list(key.values()),
        list(key),
        loc="outside lower left",
        ncols=max(1, len(panels) - 1),
        frameon=False,
        fontsize=9,
        labelcolor=style.INK,
    )
    return figure


def _draw(axes: Axes, panel: _Panel, series: Series, index: int) -> ErrorbarContainer | None:
    pairs = [(panel.x(point), panel.y(point)) for point in series.points]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not known:
        return None
    colour = style.QUIET if series.naive else style.CYCLE[index % len(style.CYCLE)]
    return axes.errorbar(
        [x.mean for x, _ in known],
        [y.mean for _, y in known],
        xerr=[_bar(x) for x, _ in known],
        yerr=[_bar(y) for _, y in known],
        label=series.label,
        color=colour,
        marker=_MARKERS[index % len(_MARKERS)],
        markerfacecolor="white" if series.naive else colour,
        markersize=6,
        linestyle="--" if series.naive else "-",
        linewidth=1,
        elinewidth=1.2,
        capsize=2.5,
        zorder=2 if series.naive else 3,
    )


def _bar(stat: Stat) -> float:
    return math.nan if stat.deviation is None else stat.deviation


def _finish(axes: Axes, panel: _Panel) -> None:
    style.quiet(axes)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.xaxis.set_major_formatter(style.percent_ticks())
    axes.yaxis.set_major_formatter(panel.yticks)
    axes.margins(0.08)
    style.title(axes, panel.title)
