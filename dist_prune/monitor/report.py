"""HTML pages of tables and pictures, one file each, and the page of one run: its report."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.formatting import NOT_MEASURED, duration, energy, percent, result_rows
from dist_prune.monitor.pictures import MAP_TITLE, activation_maps, curves, gate_history, polarization_picture
from dist_prune.monitor.records import MaskSite, Record, RunFolder

MAP_CAPTION = f"{MAP_TITLE} at each evaluation: dark is closed, light is open."


class Table(NamedTuple):
    """A table of texts. The first `words` columns are words, the others numbers; a float is drawn as a bar."""

    title: str
    rows: Sequence[Sequence[str | float]]
    words: int = 1
    header: Sequence[str] = ()
    note: str = ""


class Picture(NamedTuple):
    """A picture of a page. Its file is `name`.png."""

    name: str
    caption: str
    png: bytes


def write_pictures(folder: Path, figures: Mapping[str, tuple[str, Iterable[Figure]]]) -> list[Picture]:
    """Write figures as PNG files into `folder`. Those of one name, which share a caption, are numbered."""
    pictures = [
        Picture(name if number == 1 else f"{name}-{number}", caption, style.png(figure))
        for name, (caption, members) in figures.items()
        for number, figure in enumerate(members, start=1)
    ]
    for picture in pictures:
        write_atomic(folder / f"{picture.name}.png", picture.png)
    return pictures


def write_page(
    path: Path,
    title: str,
    state: str,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    warning: str | None = None,
    config_json: str | None = None,
) -> Path:
    """Write a page that needs no other file, with the pictures after the first table."""
    # Every value is escaped: names of recipes, classes, sites and folders may come from untrusted files.
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["NOT_MEASURED"] = NOT_MEASURED
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template("page.html.j2").render(
        title=title, state=state, tables=tables, pictures=pictures, warning=warning, config_json=config_json
    )
    write_atomic(path, f"{page}\n".encode())
    return path


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
    train, evals, summaries = ([r for r in records if r["kind"] == kind] for kind in ("train", "eval", "summary"))
    status = run.read_status() or {"state": "unknown", "last_step": 0}
    reason = f" ({status['reason']})" if status.get("reason") else ""
    done = status["state"] == "done" and summaries
    tables = [Table("Results", [*result_rows(_result(evals, summaries)), *_cost_rows(evals, to_accuracy)])]
    if sites := run.read_sites():
        header = ("site", "kind", "", "units kept", "mean activation", "agreement")
        tables += [Table("Consensus mask", [_site_row(site) for site in sites], 3, header)]
    run.report.mkdir(exist_ok=True)
    return write_page(
        run.report / "report.html",
        title=run.path.resolve().name,
        state=f"Run {status['state']}, {status['last_step']:,} steps.",
        warning=None if done else f"This run is unfinished{reason}; this page shows the records so far.",
        tables=tables,
        pictures=write_pictures(run.report, _figures(train, evals)),
        config_json=run.config.read_text("utf-8") if run.config.exists() else None,
    )


def _figures(train: Sequence[Record], evals: Sequence[Record]) -> dict[str, tuple[str, list[Figure]]]:
    """Draw every picture for which there is data."""
    found = {}
    history = gate_history(evals)
    if history.sites:
        found["mean_activation"] = (MAP_CAPTION, [activation_maps([(MAP_TITLE, history)])])
        # Training steps are recorded more often than evaluations, unless log_every is very large.
        history = max(history, gate_history(train), key=lambda of: len(of.records))
        caption = "Polarization of every site over the training."
        found["polarization"] = (caption, [polarization_picture(history)])
    if train or evals:
        found["curves"] = ("Losses, accuracy and size over the training.", [curves(train, evals)])
    return found


def _site_row(site: MaskSite) -> list[str | float]:
    kept: list[str | float] = ["", NOT_MEASURED]
    if site.units and site.kept is not None:
        kept = [len(site.kept) / site.units, f"{len(site.kept)} of {site.units}"]
    return [site.name, site.kind, *kept, percent(site.mean_activation), percent(site.agreement)]


def _result(evals: Sequence[Record], summaries: Sequence[Record]) -> Record:
    if summaries or not evals:
        return [{}, *summaries][-1]
    return {**evals[-1], "seconds_total": evals[-1].get("seconds"), "energy_joules": total_joules(evals)}


def _cost_rows(evals: Sequence[Record], accuracy: float | None) -> list[tuple[str, str]]:
    """Return the rows of time and energy to an accuracy, if there is one to reach."""
    if accuracy is None:
        return []
    found = reached(evals, accuracy)
    time, joules = (duration(found.seconds), energy(found.joules)) if found else ("not reached",) * 2
    return [(f"time to {percent(accuracy)}", time), (f"energy to {percent(accuracy)}", joules)]


class Reached(NamedTuple):
    """The cost of an accuracy, up to the evaluation that shows it; None where not measured."""

    epoch: int
    seconds: float
    joules: float | None
    # Of the network that a collapse would have made then.
    macs_ratio: float | None


def reached(evals: Sequence[Record], accuracy: float) -> Reached | None:
    """Return the cost up to the first eval record with this test accuracy (a fraction) or more, None without one.

    For gated networks the accuracy with the gates fixed to the mask counts, as after a collapse.
    """
    for number, record in enumerate(evals, start=1):
        shown: Any = record.get("accuracy_consensus")
        if shown is None:  # a network without gates, dense or collapsed in flight
            shown = record.get("accuracy")
        if shown is not None and shown >= accuracy:
            joules = total_joules(evals[:number])
            return Reached(record["epoch"], record["seconds"], joules, record.get("macs_ratio"))
    return None


def total_joules(evals: Iterable[Record]) -> float | None:
    """Return the energy of these epochs; None if one of them was not measured, or there is none."""
    parts = [record.get("energy_joules") for record in evals]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
