"""How the gates of a study part: mean opening by depth at the end, and its histogram over the epochs."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dist_prune.monitor import style
from dist_prune.monitor.opening import label_epochs
from dist_prune.monitor.study_gates import Gated, wrapped

_ROWS = 6  # groups in one picture
_BINS = 20
_BAR = "#f2c46d"
_SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#9fb4d3", style.CLOSED])


def distribution_pictures(runs: Sequence[Gated]) -> list[Figure]:
    """A row for each group: mean opening by depth at the end, and its histogram over the epochs.

    The finished runs of a group are pooled; where there are none, the unfinished ones.
    """
    groups: dict[str, list[Gated]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    members = [[run for run in group if run.run.summary] or group for group in groups.values()]
    return [_distributions(members[first : first + _ROWS]) for first in range(0, len(members), _ROWS)]


def _distributions(groups: Sequence[Sequence[Gated]]) -> Figure:
    figure = style.new_figure(11.5, 0.4 + 2.5 * len(groups))
    every = []
    for row, runs in enumerate(groups):
        depth, time = (figure.add_subplot(len(groups), 2, 2 * row + column) for column in (1, 2))
        _draw_depth(depth, runs)
        unfinished = "" if runs[0].run.summary else ", unfinished"
        style.title(depth, wrapped(runs[0].label + unfinished, 54), size=10)
        image = _draw_histogram(time, runs)
        time.set_title(_polarized(runs), loc="left", fontsize=9, color=style.QUIET, pad=10)
        every.append(time)
    bar = figure.colorbar(
        image, ax=every, fraction=0.03, pad=0.02, ticks=[0, 0.05, 0.25, 0.5, 1], aspect=20 * len(groups)
    )
    bar.ax.set_yticklabels(["0 %", "5 %", "25 %", "50 %", "100 %"], fontsize=9, color=style.QUIET)
    bar.set_label("share of the units", fontsize=9, color=style.QUIET)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return figure


def at_the_end(run: Gated) -> npt.NDArray[np.float64]:
    """Mean opening of every site, (sites,): from the final mask where there is one, or the last evaluation."""
    mask = {site["name"]: _mean(site.get("mean_activation")) for site in run.run.sites}
    return np.array(
        [mask.get(site, last) for site, last in zip(run.sites, run.history[-1], strict=True)], float
    )


def histogram(runs: Sequence[Gated]) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Share of the units of all runs whose mean opening falls into each bin of [0, 1].

    Records without a histogram of units are taken by the mean opening of each site.

    Returns:
        Shares, (bins, epochs), and the epochs.
    """
    epochs = sorted({epoch for run in runs for epoch in run.epochs})
    columns = []
    for epoch in epochs:
        counts = sum((_counts(run, epoch) for run in runs), start=np.zeros(_BINS))
        columns.append(counts / max(counts.sum(), 1))
    return np.array(columns).T, epochs


def _counts(run: Gated, epoch: int) -> npt.NDArray[np.float64]:
    for record in run.run.evals:
        if record["epoch"] == epoch and len(record.get("gate_histogram", ())) == _BINS:
            return np.array(record["gate_histogram"], float)
    rows = [row for at, row in zip(run.epochs, run.history, strict=True) if at == epoch]
    values = np.concatenate(rows) if rows else np.zeros(0)
    return np.histogram(values[np.isfinite(values)], _BINS, (0, 1))[0].astype(float)


def _draw_depth(axes: Axes, runs: Sequence[Gated]) -> None:
    """A bar for each site, the mean over the runs; a dot for each run, hollow where samples disagree."""
    sites = list(dict.fromkeys(site for run in runs for site in run.sites))
    ends = [dict(zip(run.sites, at_the_end(run), strict=True)) for run in runs]
    table = np.array([[end.get(site, np.nan) for site in sites] for end in ends], dtype=float)
    means = [
        fmean(column[np.isfinite(column)]) if np.isfinite(column).any() else np.nan for column in table.T
    ]
    places = np.arange(1, len(sites) + 1)
    axes.bar(places, means, width=0.8, color=_BAR, zorder=2)
    for number, (run, row) in enumerate(zip(runs, table, strict=True)):
        undecided = {site["name"] for site in run.run.sites if site.get("undecided")}
        face = ["white" if site in undecided else style.INK for site in sites]
        shift = 0.6 * ((number + 0.5) / len(runs) - 0.5)
        axes.scatter(
            places + shift, row, s=9, c=face, edgecolors=style.INK, linewidths=0.6, zorder=3, clip_on=False
        )
    style.quiet(axes)
    axes.set(ylim=(0, 1), xlim=(0.3, len(sites) + 0.7), yticks=[0, 0.5, 1], ylabel="mean opening at the end")
    axes.set_xlabel("site, from input to output")
    axes.xaxis.set_major_locator(style.round_ticks())


def _draw_histogram(axes: Axes, runs: Sequence[Gated]) -> AxesImage:
    shares, epochs = histogram(runs)
    image = axes.imshow(
        shares,
        cmap=_SHARES,
        norm=PowerNorm(0.5, 0, 1),  # few sites on their way are to be seen beside the many that have arrived
        aspect="auto",
        interpolation="nearest",
        origin="lower",
        extent=(-0.5, len(epochs) - 0.5, 0, 1),
    )
    style.quiet(axes, grid=False)
    label_epochs(axes, epochs)
    axes.set(yticks=[0, 0.5, 1], ylabel="mean opening")
    return image


def _polarized(runs: Sequence[Gated]) -> str:
    values = [[e["r_polar"] for e in run.run.evals if e.get("r_polar") is not None] for run in runs]
    known = [series for series in values if series]
    if not known:
        return ""
    first, last = fmean(series[0] for series in known), fmean(series[-1] for series in known)
    return f"$R_{{polar}}$ {first:.3g} at first, {last:.3g} at the end"


def _mean(value: Any) -> float | None:
    """One number for a site, from one number or one for each of its units."""
    if isinstance(value, (list, tuple)):
        return fmean(value) if value else None
    return value
