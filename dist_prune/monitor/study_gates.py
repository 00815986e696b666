"""The gates of every run of a study over the epochs: the paper's figure 6 (arXiv 2302.10798), side by side."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from dist_prune.monitor import style
from dist_prune.monitor.compare import Group, StudyRun
from dist_prune.monitor.opening import draw_opening, opening_bar
from dist_prune.monitor.pictures import gate_history, opening_picture

_PANELS = 12  # maps in one picture
_ALL_NAMED = 20  # a small panel with more sites than this names some of them only


class Gated(NamedTuple):
    """The gates of one run.

    history: mean opening, (evaluations, sites), NaN where a site had no gate; epochs: of each evaluation.
    """

    run: StudyRun
    label: str
    history: npt.NDArray[np.float64]
    sites: list[str]
    epochs: list[int]


def gated_runs(groups: Sequence[Group], names: Sequence[str]) -> list[Gated]:
    """The runs that recorded gates; `names` are the labels of the groups."""
    found = []
    for group, name in zip(groups, names, strict=True):
        for run in group.runs:
            history, sites, times = gate_history(run.evals)
            if sites:
                found.append(Gated(run, name, history, sites, [record["epoch"] for record in times]))
    return found


def opening_pictures(runs: Sequence[Gated]) -> list[Figure]:
    """A panel for every run, in as many pictures as they need."""
    pages = [runs[first : first + _PANELS] for first in range(0, len(runs), _PANELS)]
    return [_alone(page[0]) if len(page) == 1 else _side_by_side(page) for page in pages]


def wrapped(text: str, width: int) -> str:
    """A title in lines of at most `width` characters."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def _alone(run: Gated) -> Figure:
    figure = opening_picture(run.history, run.sites, run.epochs)
    style.title(figure.axes[0], wrapped(_title(run), 70))
    return figure


def _side_by_side(runs: Sequence[Gated]) -> Figure:
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    most = max(len(run.sites) for run in runs)
    height = 1.4 + (0.2 * most if most <= _ALL_NAMED else 2.9)
    figure = style.new_figure(0.8 + 4 * columns, rows * height)
    every = []
    for number, run in enumerate(runs):
        axes = figure.add_subplot(rows, columns, number + 1)
        names = _ALL_NAMED if len(run.sites) <= _ALL_NAMED else 14
        image = draw_opening(axes, run.history, run.sites, run.epochs, names)
        axes.tick_params(axis="y", labelsize=7.5)
        if number % columns:
            axes.set_ylabel("")
        style.title(axes, wrapped(_title(run), 38), size=9.5)
        every.append(axes)
    opening_bar(figure, image, every, rows)
    return figure


def _title(run: Gated) -> str:
    return f"{run.label}, seed {run.run.seed}" + (", unfinished" if run.run.summary is None else "")
