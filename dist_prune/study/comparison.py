"""The comparison of several runs: tables in Markdown, pictures, and one page that holds both."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor.page import render
from dist_prune.monitor.records import RunFolder
from dist_prune.monitor.report import write_pictures
from dist_prune.study.gate_pictures import activation_maps, distribution_pictures, gated_runs
from dist_prune.study.runs import read_runs
from dist_prune.study.tables import escaped, tables
from dist_prune.study.trade_off import trade_off_picture

_PAGE, _MARKDOWN = "comparison.html", "comparison.md"


def write_comparison(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    to_accuracy: float | None = None,
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
    paths = [Path(folder) for folder in folders if not _is_comparison(Path(folder))]
    if not paths:
        raise ValueError("no run folder is given, only comparisons")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is given twice")
    common = Path(os.path.commonpath([place.parent for place in places]))
    names = [place.relative_to(common).as_posix() for place in places]
    runs = read_runs(dict(zip(names, paths, strict=True)))
    # Runs that have nothing but the root in common are compared in the current folder.
    target = Path(out) if out else (Path() if common == common.parent else common) / "report-comparison"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {target}: {error.strerror}") from error
    pictures, shown = write_pictures(target, _figures(runs)), tables(runs, to_accuracy)
    recipes = runs["settings"].map(lambda of: of["name"]).unique()
    for name in (_MARKDOWN, _PAGE):
        template = Path(__file__).with_name(f"{name}.j2")
        page = render(template, recipes=recipes, runs=runs, tables=shown, pictures=pictures, escaped=escaped)
        write_atomic(target / name, page.encode())
    return target / _PAGE


def _is_comparison(folder: Path) -> bool:
    return (folder / _PAGE).exists() and not RunFolder(folder).holds_run()


def _figures(runs: pd.DataFrame) -> dict[str, Sequence[Figure]]:
    gated, trade_off = gated_runs(runs), trade_off_picture(runs)
    return {
        "trade-off": [trade_off] if trade_off else [],
        "mean_activation": activation_maps(gated),
        "distribution": distribution_pictures(gated),
    }
