"""Pictures of a study: accuracy against what was pruned, and the gates of each run and group (arXiv 2302.10798)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dist_prune.monitor import style
from dist_prune.monitor.pictures import GateHistory, activation_maps, gate_history, label_epochs
from dist_prune.study.runs import labels, naive_draws, short_labels

_MAPS = 12  # in one picture
_ROWS = 6  # groups in one picture of distributions
_BINS = 20
_BAR = "#f2c46d"
_SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9fb4d3", style.CLOSED])
_AMOUNTS = ("target_macs", "target_weight", "activation")  # how much is pruned, not how
_SERIES: dict[str, Any] = {"markersize": 6, "linewidth": 1, "elinewidth": 1.2, "capsize": 2.5}
_NAIVE: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "--", "zorder": 2}
_MARKERS = ("o", "s", "^", "D", "v")  # five of them and seven colors: 35 series before a pair repeats

_ACCURACY = ("accuracy_sliced", "accuracy", style.percent_tick)
_DROP = ("drop", "points of accuracy below the dense network", style.point_tick)
# Title, column and label of x; column, label and ticks of y.
_PRUNED = ("Accuracy and pruned share", "pruned", "pruned share of units or parameters", *_ACCURACY)
_SAVED = ("Accuracy and saved MACs", "saved", "MACs saved", *_ACCURACY)
_LOST = ("Accuracy lost by pruning", "saved", "MACs saved", *_DROP)


def trade_off_points(runs: pd.DataFrame) -> pd.DataFrame:
    """Return mean and std of pruned, saved, accuracy_sliced and drop, in columns (quantity, "mean" or "std").

    The index is (naive, series, point): a series holds the groups that differ only in the amount to prune, or the
    shares of a naive baseline. NaN: not measured.
    """
    own, draws = runs[runs["finished"]], naive_draws(runs)
    families = [{key: value for key, value in of.items() if key not in _AMOUNTS} for of in own["settings"]]
    series = short_labels(labels(families))
    own = own.assign(naive=False, series=series, point=own["group"])
    every = pd.concat([own, draws.assign(naive=True, point=draws["share"])])
    every = every.assign(saved=1 - every["macs_ratio"], drop=every["dense_accuracy"] - every["accuracy_sliced"])
    quantities = ["pruned", "saved", "accuracy_sliced", "drop"]
    return every.groupby(["naive", "series", "point"], sort=False)[quantities].agg(["mean", "std"])


def trade_off_picture(runs: pd.DataFrame) -> Figure | None:
    """Draw the accuracy of the sliced network against what was pruned, if there are two points to compare.

    The pruned share is drawn where there are naive baselines, the drop where there is a dense group. The naive
    baselines fall so deep that they would flatten the drop, and are not drawn there.
    """
    points = trade_off_points(runs)
    if len(points) < 2:
        return None
    own = points[~points.index.get_level_values("naive").astype(bool)]
    panels = [(_PRUNED, points), (_SAVED, points)] if len(own) < len(points) else [(_SAVED, points)]
    panels += [(_LOST, own)] if own["drop", "mean"].notna().any() else []
    figure = style.new_figure(1.2 + 4.6 * len(panels), 4.6 + 0.2 * points.index.droplevel("point").nunique())
    key: dict[str, Artist] = {}  # one entry for all panels
    for axes, (panel, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        title, x, xlabel, y, ylabel, ticks = panel
        for index, ((naive, label), line) in enumerate(shown.groupby(level=["naive", "series"], sort=False)):
            known = line.dropna(subset=[(x, "mean"), (y, "mean")]).sort_values((x, "mean"))
            color = style.QUIET if naive else style.CYCLE[index % len(style.CYCLE)]
            look = _NAIVE if naive else {"markerfacecolor": color, "linestyle": "-", "zorder": 3}
            if len(known):
                bars = axes.errorbar(
                    known[x, "mean"], known[y, "mean"], xerr=known[x, "std"], yerr=known[y, "std"], label=label,
                    color=color, marker=_MARKERS[index % 5], **_SERIES, **look,
                )  # fmt: skip
                key[label] = bars.lines[0]
        style.quiet(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.set_major_formatter(style.percent_tick)
        axes.yaxis.set_major_formatter(ticks)
        axes.margins(0.08)
        style.title(axes, title)
    look = {"frameon": False, "fontsize": 9, "labelcolor": style.INK}
    figure.legend(key.values(), key, loc="outside lower left", ncols=max(1, len(panels) - 1), **look)
    return figure


def gated_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that recorded gates; new columns: history, label (of the group), title and at_the_end.

    at_the_end: mean activation of every site, from the final mask if there is one, or the last evaluation.
    """
    runs = runs.assign(history=runs["evals"].map(gate_history), label=short_labels(runs["group"]))
    runs = runs[runs["history"].map(lambda history: len(history.sites) > 0)]
    state = runs["finished"].map({True: "", False: ", unfinished"}).astype(str)
    runs = runs.assign(title=runs["label"] + ", seed " + runs["seed"].astype(str) + state, state=state)
    masks = [{site.name: site.mean_activation for site in sites} for sites in runs["sites"]]
    lasts = [pd.Series(history.means[-1], history.sites) for history in runs["history"]]
    ends = [pd.Series(mask, last.index, float).fillna(last) for mask, last in zip(masks, lasts, strict=True)]
    return runs.assign(at_the_end=ends)


def map_pictures(runs: pd.DataFrame) -> list[Figure]:
    """Draw a map of every run (figure 6), in as many pictures as needed."""
    titled = list(zip(runs["title"], runs["history"], strict=True))
    return [activation_maps(titled[first : first + _MAPS]) for first in range(0, len(titled), _MAPS)]


def distribution_pictures(runs: pd.DataFrame) -> list[Figure]:
    """Draw a row for each group: mean activation by depth at the end, and its histogram over the epochs.

    The finished runs of a group are pooled; where there are none, the unfinished ones.
    """
    groups = [group for _, group in runs.groupby("label", sort=False)]
    members = [group[group["finished"] | ~group["finished"].any()] for group in groups]
    return [_distributions(members[first : first + _ROWS]) for first in range(0, len(members), _ROWS)]


def _distributions(groups: Sequence[pd.DataFrame]) -> Figure:
    figure = style.new_figure(11.5, 0.4 + 2.5 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (depth, time), runs in zip(panels, groups, strict=True):
        _draw_depth(depth, runs)
        style.title(depth, runs["label"].iloc[0] + runs["state"].iloc[0], size=10, width=54)
        image = _draw_histogram(time, runs["history"])
        known = [[e["r_polar"] for e in evals if e.get("r_polar") is not None] for evals in runs["evals"]]
        if ends := [(values[0], values[-1]) for values in known if values]:
            text = "$R_{{polar}}$ {:.3g} at first, {:.3g} at the end".format(*np.mean(ends, axis=0))
            time.set_title(text, loc="left", fontsize=9, color=style.QUIET, pad=10)
    ticks = {share: f"{100 * share:g} %" for share in (0, 0.05, 0.25, 0.5, 1)}
    bar = style.color_bar(figure, image, list(panels[:, 1]), len(groups), ticks)
    bar.set_label("share of the units", fontsize=9, color=style.QUIET)
    return figure


def _draw_depth(axes: Axes, runs: pd.DataFrame) -> None:
    """Draw a bar for each site, the mean over the runs; a dot for each run, hollow where samples disagree."""
    table = pd.DataFrame(list(runs["at_the_end"]))
    places = np.arange(1, len(table.columns) + 1)
    axes.bar(places, table.mean(), width=0.8, color=_BAR, zorder=2)
    look: dict[str, Any] = {"s": 9, "edgecolors": style.INK, "linewidths": 0.6, "zorder": 3, "clip_on": False}
    for number, sites in enumerate(runs["sites"]):
        undecided = {site.name for site in sites if site.undecided}
        shift = 0.6 * ((number + 0.5) / len(runs) - 0.5)  # dots of several runs must not hide each other
        face = ["white" if site in undecided else style.INK for site in table]
        axes.scatter(places + shift, table.iloc[number], c=face, **look)
    style.quiet(axes)
    axes.set(ylim=(0, 1), xlim=(0.3, len(places) + 0.7), yticks=[0, 0.5, 1], ylabel="mean activation at the end")
    axes.set_xlabel("site, from input to output")
    axes.xaxis.set_major_locator(style.round_ticks())


def histogram(histories: Iterable[GateHistory]) -> pd.DataFrame:
    """Return the share of the units of all runs in each bin of mean activation, (bins, epochs).

    Records without a histogram of units count by the mean activation of each site.
    """
    counts: dict[int, Any] = {}
    for history in histories:
        for record, means in zip(history.records, history.means, strict=True):
            units = record.get("gate_histogram") or ()
            known = units if len(units) == _BINS else np.histogram(means[np.isfinite(means)], _BINS, (0, 1))[0]
            counts[record["epoch"]] = counts.get(record["epoch"], 0) + np.array(known)
    table = pd.DataFrame(dict(sorted(counts.items())))
    return table / table.sum().clip(lower=1)


def _draw_histogram(axes: Axes, histories: Iterable[GateHistory]) -> AxesImage:
    shares = histogram(histories)
    norm = PowerNorm(0.5, 0, 1)  # the few units in between must be visible beside the many at 0 and 1
    image = axes.imshow(
        *(shares, _SHARES, norm), aspect="auto", interpolation="nearest", origin="lower",
        extent=(-0.5, len(shares.columns) - 0.5, 0, 1),
    )  # fmt: skip
    style.quiet(axes, grid=False)
    label_epochs(axes, list(shares.columns))
    axes.set(yticks=[0, 0.5, 1], ylabel="mean activation")
    return image
