"""The report of one run: reads a run folder and writes its pictures and one HTML page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.curves import curves
from dist_prune.monitor.page import render_page
from dist_prune.monitor.pictures import gate_history, opening_picture, polarization_picture
from dist_prune.monitor.records import Record, RunFolder
from dist_prune.monitor.to_accuracy import reached, total_joules
from dist_prune.monitor.wording import duration, energy, percent, result_rows


def write_report(run: RunFolder, to_accuracy: float | None = None) -> Path:
    """Write report/report.html and report/*.png, from config.json, metrics.jsonl, status.json and mask.json.

    A run that is not done gets a report of what there is, which says so; a run without gates one without
    pictures of gates.

    Args:
        run: the run folder.
        to_accuracy: a test accuracy (a fraction); two more rows say what it took to reach it.

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
    pictures = []
    run.report.mkdir(exist_ok=True)
    for name, caption, figure in _figures(train, evals):
        data = style.png(figure)
        write_atomic(run.report / f"{name}.png", data)
        pictures.append((caption, data))
    state, warning = _standing(run, finished=bool(summaries))
    page = render_page(
        title=run.path.resolve().name,
        state=state,
        warning=warning,
        results=[*result_rows(_result(evals, summaries)), *_cost_rows(evals, to_accuracy)],
        pictures=pictures,
        mask=run.read_mask(),
        config_json=run.config.read_text("utf-8") if run.config.exists() else None,
    )
    path = run.report / "report.html"
    write_atomic(path, page.encode())
    return path


def _figures(train: Sequence[Record], evals: Sequence[Record]) -> list[tuple[str, str, Figure]]:
    """Name, caption and figure of every picture for which there is data."""
    found = []
    history, sites, times = gate_history(evals)
    if sites:
        caption = "Mean opening of every site at each evaluation: dark is closed, light is open."
        figure = opening_picture(history, sites, [record["epoch"] for record in times])
        found.append(("opening", caption, figure))
        if len(gate_history(train)[2]) > len(times):  # the finer record of the two
            history, sites, times = gate_history(train)
        caption = "How the gates of every site polarize in the course of the training."
        figure = polarization_picture(history, sites, [record["step"] for record in times])
        found.append(("polarization", caption, figure))
    if train or evals:
        caption = "Losses, accuracy and size in the course of the training."
        found.append(("curves", caption, curves(train, evals)))
    return found


def _standing(run: RunFolder, finished: bool) -> tuple[str, str | None]:
    """One line on how the run stands, and a warning where it is not done."""
    status: dict[str, Any] = run.read_status() or {"state": "unknown", "last_step": 0}
    line = f"Run {status['state']}, {status['last_step']:,} steps."
    if status["state"] == "done" and finished:
        return line, None
    reason = f" ({status['reason']})" if status.get("reason") else ""
    return (
        line,
        f"This run is unfinished{reason}; this page shows what there is so far.",
    )


def _result(evals: Sequence[Record], summaries: Sequence[Record]) -> Record:
    if summaries:
        return summaries[-1]
    if not evals:
        return {}
    return {**evals[-1], "seconds_total": evals[-1].get("seconds"), "energy_joules": total_joules(evals)}


def _cost_rows(evals: Sequence[Record], accuracy: float | None) -> list[tuple[str, str]]:
    """Time and energy to an accuracy, if that is asked for."""
    if accuracy is None:
        return []
    found = reached(evals, accuracy)
    shown = (duration(found.seconds), energy(found.joules)) if found else ("not reached",) * 2
    return [
        (f"{what} to {percent(accuracy)}", text) for what, text in zip(("time", "energy"), shown, strict=True)
    ]
