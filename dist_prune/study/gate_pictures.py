"""The gates of a study: a map for each run (figure 6 of arXiv 2302.10798), and distributions for each group."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dist_prune.monitor import style
from dist_prune.monitor.activation_map import add_activation_bar, draw_activation_map, label_epochs
from dist_prune.monitor.pictures import gate_history, mean_activation_picture
from dist_prune.study.labels import short_labels

_MAPS = 12  # in one picture
_ROWS = 6  # groups in one picture of distributions
_ALL_NAMED = 20  # a small map with more sites than this names some of them only
_BINS = 20
_BAR = "#f2c46d"
_SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9fb4d3", style.CLOSED])


class GatedRun(NamedTuple):
    """A row of the study, its group's short label, and mean activations, (epochs, sites); NaN: no gate."""

    run: Any
    label: str
    history: pd.DataFrame

    def at_the_end(self) -> pd.Series:
        """Return the mean activation of every site, from the final mask if there is one, or the last evaluation."""
        mask = pd.Series({site.name: site.mean_activation for site in self.run.sites}, dtype=float)
        return mask.reindex(self.history.columns).fillna(self.history.iloc[-1])


def gated_runs(runs: pd.DataFrame) -> list[GatedRun]:
    """Return the runs that recorded gates."""
    found = []
    for run, label in zip(runs.itertuples(), short_labels(runs["group"]), strict=True):
        table, sites, times = gate_history(run.evals)
        if sites:
            found.append(GatedRun(run, label, pd.DataFrame(table, [record["epoch"] for record in times], sites)))
    return found


def activation_maps(runs: Sequence[GatedRun]) -> list[Figure]:
    """Draw a map of every run, in as many pictures as needed."""
    return [_maps(runs[first : first + _MAPS]) for first in range(0, len(runs), _MAPS)]


def _maps(runs: Sequence[GatedRun]) -> Figure:
    titles = [f"{of.label}, seed {of.run.seed}" + ", unfinished" * (not of.run.finished) for of in runs]
    tables = [(of.history.to_numpy(), list(of.history.columns), list(of.history.index)) for of in runs]
    if len(runs) == 1:
        figure = mean_activation_picture(*tables[0])
        style.title(figure.axes[0], _wrapped(titles[0], 70))
        return figure
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    most = max(len(sites) for _, sites, _ in tables)
    figure = style.new_figure(0.8 + 4 * columns, rows * (1.4 + (0.2 * most if most <= _ALL_NAMED else 2.9)))
    for number, (title, table) in enumerate(zip(titles, tables, strict=True)):
        axes = figure.add_subplot(rows, columns, number + 1)
        image = draw_activation_map(axes, *table, _ALL_NAMED if len(table[1]) <= _ALL_NAMED else 14)
        axes.tick_params(axis="y", labelsize=7.5)
        if number % columns:
            axes.set_ylabel("")
        style.title(axes, _wrapped(title, 38), size=9.5)
    add_activation_bar(figure, image, figure.axes, rows)
    return figure


def distribution_pictures(runs: Sequence[GatedRun]) -> list[Figure]:
    """Draw a row for each group: mean activation by depth at the end, and its histogram over the epochs.

    The finished runs of a group are pooled; where there are none, the unfinished ones.
    """
    groups: dict[str, list[GatedRun]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    members = [[of for of in group if of.run.finished] or group for group in groups.values()]
    return [_distributions(members[first : first + _ROWS]) for first in range(0, len(members), _ROWS)]


def _distributions(groups: Sequence[Sequence[GatedRun]]) -> Figure:
    figure = style.new_figure(11.5, 0.4 + 2.5 * len(groups))
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (depth, time), runs in zip(panels, groups, strict=True):
        _draw_depth(depth, runs)
        title = runs[0].label + ", unfinished" * (not runs[0].run.finished)
        style.title(depth, _wrapped(title, 54), size=10)
        image = _draw_histogram(time, runs)
        time.set_title(_polarization(runs), loc="left", fontsize=9, color=style.QUIET, pad=10)
    ticks = {share: f"{100 * share:g} %" for share in (0, 0.05, 0.25, 0.5, 1)}
    bar = style.color_bar(figure, image, list(panels[:, 1]), len(groups), ticks)
    bar.set_label("share of the units", fontsize=9, color=style.QUIET)
    return figure


def _draw_depth(axes: Axes, runs: Sequence[GatedRun]) -> None:
    """Draw a bar for each site, the mean over the runs; a dot for each run, hollow where samples disagree."""
    table = pd.DataFrame([run.at_the_end() for run in runs])
    places = np.arange(1, len(table.columns) + 1)
    axes.bar(places, table.mean(), width=0.8, color=_BAR, zorder=2)
    look: dict[str, Any] = {"s": 9, "edgecolors": style.INK, "linewidths": 0.6, "zorder": 3, "clip_on": False}
    for number, run in enumerate(runs):
        undecided = {site.name for site in run.run.sites if site.undecided}
        shift = 0.6 * ((number + 0.5) / len(runs) - 0.5)  # dots of several runs must not hide each other
        face = ["white" if site in undecided else style.INK for site in table]
        axes.scatter(places + shift, table.iloc[number], c=face, **look)
    style.quiet(axes)
    axes.set(ylim=(0, 1), xlim=(0.3, len(places) + 0.7), yticks=[0, 0.5, 1], ylabel="mean activation at the end")
    axes.set_xlabel("site, from input to output")
    axes.xaxis.set_major_locator(style.round_ticks())


def histogram(runs: Sequence[GatedRun]) -> pd.DataFrame:
    """Return the share of the units of all runs in each bin of mean activation, (bins, epochs).

    Records without a histogram of units count by the mean activation of each site.
    """
    epochs = sorted({epoch for run in runs for epoch in run.history.index})
    counts = pd.DataFrame({epoch: sum(_counts(run, epoch) for run in runs) for epoch in epochs})
    return counts / counts.sum().clip(lower=1)


def _counts(of: GatedRun, epoch: int) -> Any:
    for record in of.run.evals:
        if record["epoch"] == epoch and len(record.get("gate_histogram") or ()) == _BINS:
            return np.array(record["gate_histogram"])
    values = of.history[of.history.index == epoch].to_numpy()
    return np.histogram(values[np.isfinite(values)], _BINS, (0, 1))[0]


def _draw_histogram(axes: Axes, runs: Sequence[GatedRun]) -> AxesImage:
    shares = histogram(runs)
    norm = PowerNorm(0.5, 0, 1)  # the few units in between must be visible beside the many at 0 and 1
    image = axes.imshow(
        *(shares, _SHARES, norm), aspect="auto", interpolation="nearest", origin="lower",
        extent=(-0.5, len(shares.columns) - 0.5, 0, 1),
    )  # fmt: skip
    style.quiet(axes, grid=False)
    label_epochs(axes, list(shares.columns))
    axes.set(yticks=[0, 0.5, 1], ylabel="mean activation")
    return image


def _polarization(runs: Sequence[GatedRun]) -> str:
    known = [pd.Series([e.get("r_polar") for e in of.run.evals], dtype=float).dropna() for of in runs]
    ends = pd.DataFrame([(values.iloc[0], values.iloc[-1]) for values in known if len(values)]).mean()
    return f"$R_{{polar}}$ {ends[0]:.3g} at first, {ends[1]:.3g} at the end" if len(ends) else ""


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)
