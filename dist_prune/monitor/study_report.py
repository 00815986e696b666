"""The comparison of several runs: tables in Markdown, pictures, and one page that holds both."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor import page, style
from dist_prune.monitor.compare import Group, group_runs, read_run
from dist_prune.monitor.distribution import distribution_pictures
from dist_prune.monitor.records import RunFolder
from dist_prune.monitor.study_cost import cost_table
from dist_prune.monitor.study_gates import gated_runs, opening_pictures
from dist_prune.monitor.study_labels import short_labels
from dist_prune.monitor.study_pictures import trade_off_picture
from dist_prune.monitor.study_series import all_series
from dist_prune.monitor.study_tables import Table, escaped, markdown, tables

_PAGE, _MARKDOWN = "comparison.html", "comparison.md"


def write_comparison(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    to_accuracy: float | None = None,
) -> Path:
    """Write comparison.md, comparison.html and PNG pictures of several runs.

    Args:
        folders: run folders; a comparison written earlier among them is passed over, as `runs/*` names it.
        out: where to write; if left out, `report-comparison` in the folder that all runs have in common.
        to_accuracy: a test accuracy (a fraction); one more table says what it took to reach it.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        FileNotFoundError: a folder holds no run.
        OSError: the comparison cannot be written.
        ValueError: a folder is given twice, was not evaluated yet, or holds a damaged file.
    """
    paths = [Path(folder) for folder in folders if not _is_comparison(Path(folder))]
    if not paths:
        raise ValueError("no run folder is given, only comparisons")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"{path} is given twice")
    common = Path(os.path.commonpath([place.parent for place in places]))
    runs = [
        read_run(path, place.relative_to(common).as_posix())
        for path, place in zip(paths, places, strict=True)
    ]
    target = Path(out) if out else (Path() if common == common.parent else common) / "report-comparison"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {target}: {error.strerror}") from error
    return _write(target, group_runs(runs), to_accuracy)


def _is_comparison(folder: Path) -> bool:
    return (folder / _PAGE).exists() and not RunFolder(folder).holds_run()


def _write(out: Path, groups: Sequence[Group], to_accuracy: float | None) -> Path:
    title, state = _heading(groups)
    shown = tables(groups)
    if to_accuracy is not None:
        shown.insert(1, cost_table(groups, to_accuracy))
    pictures = [(name, caption, style.png(figure)) for name, caption, figure in _figures(groups)]
    for name, _, data in pictures:
        write_atomic(out / f"{name}.png", data)
    write_atomic(out / _MARKDOWN, _markdown(title, state, shown, pictures).encode())
    figures = [page.figure(caption, data) for _, caption, data in pictures]
    first, *others = [_html(table) for table in shown]
    parts = [first, *(["<h2>Pictures</h2>", *figures] if figures else []), *others]
    path = out / _PAGE
    write_atomic(path, page.document(title, state, parts).encode())
    return path


def _heading(groups: Sequence[Group]) -> tuple[str, str]:
    runs = [run for group in groups for run in group.runs]
    unfinished = sum(run.summary is None for run in runs)
    state = f"{len(runs)} runs in {len(groups)} groups" if len(runs) > 1 else "One run"
    state += f"; {unfinished} unfinished, left out of all means" if unfinished else ""
    names = list(dict.fromkeys(group.settings["name"] for group in groups))
    return "Comparison of " + ", ".join(names), state + "."


def _figures(groups: Sequence[Group]) -> list[tuple[str, str, Figure]]:
    """Name, caption and figure of every picture for which there is data."""
    found: list[tuple[str, str, Figure]] = []
    trade_off = trade_off_picture(all_series(groups))
    if trade_off:
        caption = "Accuracy of the sliced network against what was taken out. Bars: deviation over seeds."
        found.append(("trade-off", caption, trade_off))
    gated = gated_runs(groups, short_labels([group.label for group in groups]))
    caption = "Mean opening of every site at each evaluation: dark is closed, light is open."
    found += _numbered("opening", caption, opening_pictures(gated))
    caption = (
        "Left: mean opening by depth at the end; bars are means over the runs of a group, each dot is one run, "
        "hollow where units are undecided. Right: how many sites had which mean opening, by epoch."
    )
    if any(site.get("kind") == "channel" for one in gated for site in one.run.sites):
        caption += (
            " The opening of a channel site is the mean over its channels: between 0 and 1 it says how many are "
            "open. R_polar says how decided they are."
        )
    return found + _numbered("distribution", caption, distribution_pictures(gated))


def _numbered(name: str, caption: str, figures: Sequence[Figure]) -> list[tuple[str, str, Figure]]:
    return [
        (name if number == 1 else f"{name}-{number}", caption, figure)
        for number, figure in enumerate(figures, start=1)
    ]


def _markdown(
    title: str, state: str, shown: Sequence[Table], pictures: Sequence[tuple[str, str, bytes]]
) -> str:
    images = [f"![{caption}]({name}.png)\n\n*{caption}*\n" for name, caption, _ in pictures]
    first, *others = [markdown(table) for table in shown]
    return "\n".join([f"# {escaped(title)}\n\n{state}\n", first, *images, *others])


def _html(table: Table) -> str:
    return (
        f"<h2>{table.title}</h2>\n{page.note(table.note)}\n{page.table(table.head, table.rows, table.words)}"
    )
