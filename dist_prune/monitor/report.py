"""The report of one run: reads a run folder and writes its pictures and one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.curves import curves
from dist_prune.monitor.formatting import duration, energy, percent, result_rows
from dist_prune.monitor.page import render
from dist_prune.monitor.pictures import gate_history, mean_activation_picture, polarization_picture
from dist_prune.monitor.records import Record, RunFolder
from dist_prune.monitor.to_accuracy import reached, total_joules


class Picture(NamedTuple):
    """A picture of a page. Its file is `name`.png; several of one kind are numbered."""

    kind: str
    name: str
    png: bytes


def write_pictures(folder: Path, figures: Mapping[str, Sequence[Figure]]) -> list[Picture]:
    """Write figures, grouped by kind, as PNG files into `folder`."""
    pictures = [
        Picture(kind, kind if number == 1 else f"{kind}-{number}", style.png(figure))
        for kind, members in figures.items()
        for number, figure in enumerate(members, start=1)
    ]
    for picture in pictures:
        write_atomic(folder / f"{picture.name}.png", picture.png)
    return pictures


def write_report(run: RunFolder, to_accuracy: float | None = None) -> Path:
    """Write report/report.html and report/*.png, from config.json, metrics.jsonl, status.json and mask.json.

    The report of an unfinished run shows the records so far and a warning; that of a run without gates has no
    pictures of gates.

    Args:
        run: the run folder.
        to_accuracy: a test accuracy (a fraction); two more rows show the time and energy to reach it.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: one of the files is damaged.
    """
    if not run.holds_run():
        raise FileNotFoundError(f"{run.path} holds no run")
    records = run.read_metrics()
    train, evals, summaries = (
        [record for record in records if record["kind"] == kind] for kind in ("train", "eval", "summary")
    )
    state, warning = _state(run, finished=bool(summaries))
    run.report.mkdir(exist_ok=True)
    page = render(
        Path(__file__).with_name("report.html.j2"),
        title=run.path.resolve().name,
        state=state,
        warning=warning,
        results=[*result_rows(_result(evals, summaries)), *_cost_rows(evals, to_accuracy)],
        pictures=write_pictures(run.report, _figures(train, evals)),
        sites=run.read_sites(),
        config_json=run.config.read_text("utf-8") if run.config.exists() else None,
    )
    path = run.report / "report.html"
    write_atomic(path, page.encode())
    return path


def _figures(train: Sequence[Record], evals: Sequence[Record]) -> dict[str, list[Figure]]:
    """Draw every picture for which there is data."""
    found = {}
    history, sites, times = gate_history(evals)
    if sites:
        figure = mean_activation_picture(history, sites, [record["epoch"] for record in times])
        found["mean_activation"] = [figure]
        # Training steps are recorded more often than evaluations, unless log_every is very large.
        if len(gate_history(train)[2]) > len(times):
            history, sites, times = gate_history(train)
        found["polarization"] = [polarization_picture(history, sites, [record["step"] for record in times])]
    if train or evals:
        found["curves"] = [curves(train, evals)]
    return found


def _state(run: RunFolder, finished: bool) -> tuple[str, str | None]:
    """Return one line on the state of the run, and a warning unless it is done."""
    status: dict[str, Any] = run.read_status() or {"state": "unknown", "last_step": 0}
    line = f"Run {status['state']}, {status['last_step']:,} steps."
    if status["state"] == "done" and finished:
        return line, None
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return line, f"This run is unfinished{reason}; this page shows the records so far."


def _result(evals: Sequence[Record], summaries: Sequence[Record]) -> Record:
    if summaries:
        return summaries[-1]
    if not evals:
        return {}
    return {**evals[-1], "seconds_total": evals[-1].get("seconds"), "energy_joules": total_joules(evals)}


def _cost_rows(evals: Sequence[Record], accuracy: float | None) -> list[tuple[str, str]]:
    """Return the rows of time and energy to an accuracy, if there is one to reach."""
    if accuracy is None:
        return []
    found = reached(evals, accuracy)
    time, joules = (duration(found.seconds), energy(found.joules)) if found else ("not reached",) * 2
    return [(f"time to {percent(accuracy)}", time), (f"energy to {percent(accuracy)}", joules)]
