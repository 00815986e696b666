"""The comparison of several runs: tables in Markdown, pictures, and one page that holds both."""

import os
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from dist_prune.files import write_atomic
from dist_prune.monitor.page import Picture, Table, write_page, write_pictures
from dist_prune.monitor.records import RunFolder
from dist_prune.monitor.report import MAP_CAPTION
from dist_prune.study.pictures import distribution_pictures, gated_runs, map_pictures, trade_off_picture
from dist_prune.study.runs import read_runs
from dist_prune.study.tables import tables

_PAGE = "comparison.html"
_TRADE_OFF = "Accuracy of the sliced network against what was pruned. Bars: standard deviation over seeds."
_DISTRIBUTION = (
    "Left: mean activation by depth at the end; bars are means over the runs of a group, each dot is one run, hollow "
    "where units are undecided. Right: how many units had which mean activation, by epoch. The mean activation of a "
    "channel site is the mean over its channels: between 0 and 1 it shows how many are open. R_polar shows how decided "
    "they are."
)


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
    paths = [path for path in map(Path, folders) if not (path / _PAGE).exists() or RunFolder(path).holds_run()]
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
    gated, trade_off = gated_runs(runs), trade_off_picture(runs)
    figures = {
        "trade-off": (_TRADE_OFF, [trade_off] if trade_off else []),
        "mean_activation": (MAP_CAPTION, map_pictures(gated)),
        "distribution": (_DISTRIBUTION, distribution_pictures(gated)),
    }
    unfinished = int((~runs["finished"]).sum())
    state = f"{len(runs)} runs in {runs['group'].nunique()} groups" if len(runs) > 1 else "One run"
    state += f"; {unfinished} unfinished, excluded from all means." if unfinished else "."
    title = f"Comparison of {', '.join(runs['settings'].map(lambda of: of['name']).unique())}"
    shown, pictures = tables(runs, to_accuracy), write_pictures(target, figures)
    write_atomic(target / "comparison.md", _markdown(title, state, shown, pictures).encode())
    return write_page(target / _PAGE, title, state, shown, pictures)


def _markdown(title: str, state: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    parts = [f"# {_escaped(title)}", state]
    for number, table in enumerate(tables):
        align = ["left"] * table.words + ["right"] * (len(table.header) - table.words)
        rows = [[_escaped(str(cell)) for cell in row] for row in table.rows]
        cells = tabulate(rows, table.header, tablefmt="github", colalign=align, disable_numparse=True)
        parts += [f"## {table.title}", table.note, cells]
        if number == 0:
            parts += [f"![{of.caption}]({of.name}.png)\n\n*{of.caption}*" for of in pictures]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Escape text for Markdown: it must neither end a cell of a table nor become HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
