"""The comparison of several runs: tables, pictures, and one page that holds both, also as Markdown."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from dist_prune.files import write_atomic
from dist_prune.monitor.formatting import NOT_MEASURED, percent, spread
from dist_prune.monitor.records import RunFolder
from dist_prune.monitor.report import MAP_CAPTION, Picture, Reached, Table, reached, write_page, write_pictures
from dist_prune.study.pictures import distribution_pictures, gated_runs, map_pictures, trade_off_picture
from dist_prune.study.runs import naive_draws, read_runs

_PAGE = "comparison.html"
# In Markdown, text must neither end a cell of a table nor become HTML.
_ESCAPES = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;"})
_NOTES = {
    "groups": "A group holds the runs that differ in their seed only. Numbers are means over its finished runs, ± the "
    "sample standard deviation; a single run shows none. Accuracy is that of the sliced network; the difference, in "
    "points, is to the dense group of the same network.",
    "schedules": " Schedules are written as 0..2@5..15, from 0 to 2 in epochs 5 to 15, and as 1@5,2@10, 1 from epoch 5 "
    "on and 2 from epoch 10.",
    "costs": "Up to the end of the first epoch after which the test accuracy was at least this (of gated networks: "
    "with the gates fixed to the mask, and the MACs of what a collapse would have kept then). Means over the finished "
    "runs that reached it, ± the sample standard deviation; the ratios are to the dense group of the same network.",
    "naive": "A trained network of which a random share is pruned, without any training after. Means over draws, ± the "
    "sample standard deviation. Dropout sets weights to zero, which saves no MACs.",
    "runs": "The last evaluation is of the network in training, with its gates dynamic if it has any.",
    "trade-off": "Accuracy of the sliced network against what was pruned. Bars: standard deviation over seeds.",
    "distribution": "Left: mean activation by depth at the end; bars are means over the runs of a group, each dot is "
    "one run, hollow where units are undecided. Right: how many units had which mean activation, by epoch. The mean "
    "activation of a channel site is the mean over its channels: between 0 and 1 it shows how many are open. R_polar "
    "shows how decided they are.",
}
_Columns = dict[str, tuple[str, float, int]]  # heading: column, scale, digits
_GROUP_COLUMNS: _Columns = {
    "accuracy (%)": ("accuracy_sliced", 100, 2),
    "MACs (M)": ("macs", 1e-6, 2),
    "MACs, sliced / dense (%)": ("macs_ratio", 100, 1),
    "parameters (k)": ("parameters", 1e-3, 1),
    "gates open (%)": ("open_ratio", 100, 1),
    "R_polar": ("r_polar", 1, 4),
    "agreement (%)": ("agreement", 100, 2),
    "training (s)": ("seconds_total", 1, 0),
    "energy (kJ)": ("energy_joules", 1e-3, 2),
}
_COST_COLUMNS: _Columns = {
    "epochs": ("epoch", 1, 1),
    "time (s)": ("seconds", 1, 0),
    "energy (kJ)": ("joules", 1e-3, 2),
    "MACs then / dense (%)": ("macs_ratio", 100, 1),
}
_NAIVE_COLUMNS: _Columns = {
    "accuracy (%)": ("accuracy_sliced", 100, 2),
    "MACs, kept / dense (%)": ("macs_ratio", 100, 1),
}
_RUN_COLUMNS: _Columns = {
    "accuracy, last evaluation (%)": ("accuracy", 100, 2),
    "accuracy, sliced (%)": ("accuracy_sliced", 100, 2),
    "MACs, kept / dense (%)": ("macs_ratio", 100, 1),
}


def write_comparison(
    folders: Sequence[str | Path], out: str | Path | None = None, to_accuracy: float | None = None
) -> Path:
    """Write comparison.md, comparison.html and PNG pictures of several runs.

    Args:
        folders: run folders. Earlier comparisons among them are skipped, so that `runs/*` can be given again.
        out: where to write; by default `report-comparison` in the folder that all runs have in common.
        to_accuracy: a test accuracy (a fraction); one more table shows the cost to reach it.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        FileNotFoundError: a folder holds no run.
        OSError: the comparison cannot be written.
        ValueError: a folder is given twice, has no evaluation yet, or holds a damaged file.
    """
    paths = [path for path in map(Path, folders) if not (path / _PAGE).exists() or RunFolder(path).holds_run()]
    if not paths:
        raise ValueError("no run folder is given, only comparisons")
    places: dict[Path, Path] = {}
    for path in paths:
        if path.resolve() in places:
            raise ValueError(f"{path} is given twice")
        places[path.resolve()] = path
    common = Path(os.path.commonpath([place.parent for place in places]))
    runs = read_runs({place.relative_to(common).as_posix(): path for place, path in places.items()})
    # Runs that have nothing but the root in common are compared in the current folder.
    target = Path(out) if out else (Path() if common == common.parent else common) / "report-comparison"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {target}: {error.strerror}") from error
    gated, trade_off = gated_runs(runs), trade_off_picture(runs)
    figures = {
        "trade-off": (_NOTES["trade-off"], [trade_off] if trade_off else []),
        "mean_activation": (MAP_CAPTION, map_pictures(gated)),
        "distribution": (_NOTES["distribution"], distribution_pictures(gated)),
    }
    unfinished = int((~runs["finished"]).sum())
    state = f"{len(runs)} runs in {runs['group'].nunique()} groups" if len(runs) > 1 else "One run"
    state += f"; {unfinished} unfinished, excluded from all means." if unfinished else "."
    title = f"Comparison of {', '.join(runs['settings'].map(lambda of: of['name']).unique())}"
    shown, pictures = _tables(runs, to_accuracy), write_pictures(target, figures)
    write_atomic(target / "comparison.md", _markdown(title, state, shown, pictures).encode())
    return write_page(target / _PAGE, title, state, shown, pictures)


def _markdown(title: str, state: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    parts = [f"# {title.translate(_ESCAPES)}", state]
    for number, table in enumerate(tables):
        align = ["left"] * table.words + ["right"] * (len(table.header) - table.words)
        rows = [[str(cell).translate(_ESCAPES) for cell in row] for row in table.rows]
        cells = tabulate(rows, table.header, tablefmt="github", colalign=align, disable_numparse=True)
        parts += [f"## {table.title}", table.note, cells]
        if number == 0:
            parts += [f"![{of.caption}]({of.name}.png)\n\n*{of.caption}*" for of in pictures]
    return "\n\n".join(parts) + "\n"


def _tables(runs: pd.DataFrame, to_accuracy: float | None) -> list[Table]:
    """Return the tables for which there is data; the one of groups comes first."""
    schedules = _NOTES["schedules"] if runs["group"].str.contains("@").any() else ""
    found = [("Groups", _groups(runs), 2, _NOTES["groups"] + schedules)]
    if to_accuracy is not None:
        found += [(f"Time and energy to {percent(to_accuracy)}", _costs(runs, to_accuracy), 1, _NOTES["costs"])]
    found += [("Naive baselines", _naive(naive_draws(runs)), 1, _NOTES["naive"])]
    found += [("Runs", _runs(runs), 3, _NOTES["runs"])]
    return [
        Table(title, cells.to_numpy().tolist(), words, list(cells.columns), note)
        for title, cells, words, note in found
        if len(cells)
    ]


def _spread(values: pd.Series, scale: float = 1, digits: int = 2) -> str:
    return spread(values.mean(), values.std(), scale, digits)


def _cells(groups: Any, columns: _Columns) -> pd.DataFrame:
    """Return a row for each group and a column of texts for each of `columns`."""
    return pd.DataFrame({head: groups[key].agg(_spread, *form) for head, (key, *form) in columns.items()})


def _groups(runs: pd.DataFrame) -> pd.DataFrame:
    grouped = runs.groupby("group", sort=False)
    cells = _cells(grouped, _GROUP_COLUMNS)
    seeds = runs["seed"].astype(str) + runs["finished"].map({True: "", False: " (unfinished)"})
    cells.insert(0, "seeds", seeds.groupby(runs["group"]).agg(", ".join))
    points = 100 * (grouped["accuracy_sliced"].mean() - grouped["dense_accuracy"].first())
    difference = points.map("{:+.2f}".format).where(points.notna(), NOT_MEASURED)
    cells.insert(2, "difference", difference.mask(grouped["dense"].first() == cells.index, "0 (dense)"))
    return cells.reset_index()


def _costs(runs: pd.DataFrame, accuracy: float) -> pd.DataFrame:
    runs = runs[runs["finished"]].reset_index()
    found = [reached(evals, accuracy) or [None] * 4 for evals in runs["evals"]]
    costs = pd.DataFrame(found, columns=Reached._fields, dtype=float).join(runs[["group", "dense"]])
    # Where the energy of some runs is missing, that of the others would be of other runs than the time.
    missing = costs["seconds"].notna() & costs["joules"].isna()
    costs["joules"] = costs["joules"].mask(missing.groupby(costs["group"]).transform("any"))
    grouped = costs.groupby("group", sort=False)
    counts, means = grouped["epoch"].count(), grouped[["seconds", "joules"]].mean()
    ratios = (means / means.reindex(grouped["dense"].first()).to_numpy()).groupby(level="group")
    cells = _cells(grouped, _COST_COLUMNS)
    cells.insert(2, "time / dense", ratios["seconds"].agg(_spread))
    cells.insert(4, "energy / dense", ratios["joules"].agg(_spread))
    cells.loc[counts == 0] = "not reached"
    cells.insert(0, "reached by", counts.astype(str) + " of " + grouped.size().astype(str))
    return cells.reset_index()


def _naive(draws: pd.DataFrame) -> pd.DataFrame:
    shares = (100 * draws["share"]).map("{:g}".format)
    grouped = draws.groupby(["series", shares], sort=False)
    cells = _cells(grouped, _NAIVE_COLUMNS)
    cells.insert(0, "draws", grouped.size().astype(str))
    saves_none = (grouped["macs_ratio"].count() == 0) & (grouped["baseline"].first() == "dropout")
    cells.loc[saves_none, "MACs, kept / dense (%)"] = "not reduced"
    return cells.reset_index(names=["baseline", "share (%)"])


def _runs(runs: pd.DataFrame) -> pd.DataFrame:
    last = pd.DataFrame([evals[-1] if evals else {} for evals in runs["evals"]])
    last = last.reindex(columns=["epoch", "accuracy", "macs_ratio"]).astype(float)
    epochs = [f"{at:g} of {every}" for at, every in zip(last["epoch"], runs["epochs"], strict=True)]
    words = runs[["run", "group"]].assign(
        state=runs["finished"].map({True: "finished", False: "unfinished"}),
        seed=runs["seed"].astype(str),
        epochs=pd.Series(epochs).where(last["epoch"].notna(), NOT_MEASURED),
    )
    ratio = runs["macs_ratio"].where(runs["finished"], last["macs_ratio"])
    known = runs.assign(accuracy=last["accuracy"], macs_ratio=ratio)
    return words.join(_cells(known.groupby(known.index), _RUN_COLUMNS))
