"""Accuracy against pruned share and saved MACs (arXiv 2302.10798, figures 4 and 5)."""

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dist_prune.monitor import style
from dist_prune.study.labels import family, labels, short_labels
from dist_prune.study.runs import naive_draws

_MARKERS = ("o", "s", "^", "D", "v")  # five of them and seven colors: 35 series before a pair repeats


class _Panel(NamedTuple):
    title: str
    x: str
    xlabel: str
    y: str
    ylabel: str
    yticks: FuncFormatter


_ACCURACY = ("accuracy_sliced", "accuracy", style.percent_ticks())
_DROP = ("drop", "points of accuracy below the dense network", style.point_ticks())
_PRUNED = _Panel("Accuracy and pruned share", "pruned", "pruned share of units or parameters", *_ACCURACY)
_SAVED = _Panel("Accuracy and saved MACs", "saved", "MACs saved", *_ACCURACY)
_LOST = _Panel("Accuracy lost by pruning", "saved", "MACs saved", *_DROP)


def trade_off_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and std of pruned, saved, accuracy_sliced and drop, in columns (quantity, "mean" or "std").

    The index is (naive, series, point): a series holds the groups that differ only in the amount to prune, or the
    shares of a naive baseline. NaN: not measured.
    """
    own, draws = runs[runs["finished"]], naive_draws(runs)
    series = short_labels(labels([family(of) for of in own["settings"]]))
    own = own.assign(naive=False, series=series, point=own["group"])
    every = pd.concat([own, draws.assign(naive=True, point=draws["share"])])
    quantities = ["pruned", "saved", "accuracy_sliced", "drop"]
    return every.groupby(["naive", "series", "point"], sort=False)[quantities].agg(["mean", "std"])


def trade_off_picture(runs: pd.DataFrame) -> Figure | None:
    """Draw the accuracy of the sliced network against what was pruned; bars are deviations over seeds.

    The pruned share is drawn where there are naive baselines, the drop where there is a dense group. The naive
    baselines fall so deep that they would flatten the drop, and are not drawn there.

    Returns:
        None where there are not two points to compare.
    """
    points = trade_off_points(runs)
    if len(points) < 2:
        return None
    own = points[~points.index.get_level_values("naive").astype(bool)]
    panels = [(_PRUNED, points)] if len(own) < len(points) else []
    panels += [(_SAVED, points)]
    panels += [(_LOST, own)] if own["drop"]["mean"].notna().any() else []
    figure = style.new_figure(1.2 + 4.6 * len(panels), 4.6 + 0.2 * points.index.droplevel("point").nunique())
    key: dict[str, Artist] = {}  # one entry for all panels
    for axes, (panel, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, ((naive, label), line) in enumerate(shown.groupby(level=["naive", "series"], sort=False)):
            known = line.dropna(subset=[(panel.x, "mean"), (panel.y, "mean")]).sort_values((panel.x, "mean"))
            if len(known):
                key[label] = _draw(axes, known[panel.x], known[panel.y], label, naive, index).lines[0]
        style.quiet(axes)
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.xaxis.set_major_formatter(style.percent_ticks())
        axes.yaxis.set_major_formatter(panel.yticks)
        axes.margins(0.08)
        style.title(axes, panel.title)
    look = {"frameon": False, "fontsize": 9, "labelcolor": style.INK}
    figure.legend(key.values(), key, loc="outside lower left", ncols=max(1, len(panels) - 1), **look)
    return figure


def _draw(axes: Axes, x: pd.DataFrame, y: pd.DataFrame, label: str, naive: bool, index: int) -> ErrorbarContainer:
    color, marker = style.QUIET if naive else style.CYCLE[index % len(style.CYCLE)], _MARKERS[index % 5]
    face, line, zorder = ("white", "--", 2) if naive else (color, "-", 3)
    look: dict[str, Any] = {"xerr": x["std"], "yerr": y["std"], "elinewidth": 1.2, "capsize": 2.5}
    look |= {"marker": marker, "markerfacecolor": face, "markersize": 6, "linestyle": line, "linewidth": 1}
    return axes.errorbar(x["mean"], y["mean"], label=label, color=color, zorder=zorder, **look)
