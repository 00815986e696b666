"""The tables of a study: groups, baselines, runs; as texts that Markdown and HTML both show."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from dist_prune.monitor.compare import Group, Stat, StudyRun, dense_group
from dist_prune.monitor.naive import naive_series
from dist_prune.monitor.wording import NOT_MEASURED


class Table(NamedTuple):
    """A heading, one line on what is meant, column heads, rows of texts; the first `words` columns are words."""

    title: str
    note: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


def tables(groups: Sequence[Group]) -> list[Table]:
    """Those for which there is data; the table of groups comes first."""
    found = [_groups_table(groups), _naive_table(groups), _runs_table(groups)]
    return [table for table in found if table.rows]


def markdown(table: Table) -> str:
    """The table with its heading as GitHub's Markdown."""
    numbers = len(table.head) - table.words
    cells = tabulate(
        [[escaped(text) for text in row] for row in table.rows],
        headers=table.head,
        tablefmt="github",
        disable_numparse=True,
        colalign=["left"] * table.words + ["right"] * numbers,
    )
    return f"## {table.title}\n\n{table.note}\n\n{cells}\n"


def escaped(text: str) -> str:
    """Text for Markdown that neither ends a cell of a table nor becomes HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def spread(stat: Stat | None, scale: float = 1, digits: int = 2) -> str:
    """Mean and deviation, times `scale`, with equally many digits: "82.06 ± 0.31"."""
    if stat is None:
        return NOT_MEASURED
    wrong = {0.0, 100.0} if scale == 100 else {0.0}  # more digits where a number would read as none or as all
    exact = scale * stat.mean in wrong
    while not exact and digits < 6 and float(f"{scale * stat.mean:.{digits}f}") in wrong:
        digits += 1
    mean = f"{scale * stat.mean:.{digits}f}"
    return mean if stat.deviation is None else f"{mean} ± {scale * stat.deviation:.{digits}f}"


def _groups_table(groups: Sequence[Group]) -> Table:
    scheduled = ""
    if any("@" in group.label for group in groups):
        scheduled = (
            " Schedules are written as 0..2@5..15, from 0 to 2 in epochs 5 to 15, and as 1@5,2@10, 1 from epoch 5 "
            "on and 2 from epoch 10."
        )
    return Table(
        "Groups",
        "A group holds the runs that differ in their seed only. Numbers are means over its finished runs, ± the "
        "sample standard deviation; a single run shows none. Accuracy is that of the sliced network; the "
        "difference, in points, is to the dense group of the same network." + scheduled,
        [
            "group",
            "seeds",
            "accuracy (%)",
            "difference",
            "MACs (M)",
            "MACs, sliced / dense (%)",
            "parameters (k)",
            "gates open (%)",
            "R_polar",
            "agreement (%)",
            "training (s)",
            "energy (kJ)",
        ],
        [_group_row(group, groups) for group in groups],
        words=2,
    )


def _group_row(group: Group, groups: Sequence[Group]) -> list[str]:
    return [
        group.label,
        ", ".join(f"{run.seed}" + (" (unfinished)" if run.summary is None else "") for run in group.runs),
        spread(group.stat("accuracy_sliced"), 100),
        _difference(group, groups),
        spread(group.stat("macs"), 1e-6),
        spread(group.stat("macs_ratio"), 100, digits=1),
        spread(group.stat("parameters"), 1e-3, digits=1),
        spread(group.stat("open_ratio"), 100, digits=1),
        spread(group.stat("r_polar"), digits=4),
        spread(group.stat("agreement"), 100),
        spread(group.stat("seconds_total"), digits=0),
        spread(group.stat("energy_joules"), 1e-3),
    ]


def _difference(group: Group, groups: Sequence[Group]) -> str:
    dense, accuracy = dense_group(group, groups), group.stat("accuracy_sliced")
    if dense is group:
        return "0 (dense)"
    reference = dense.stat("accuracy_sliced") if dense else None
    if reference is None or accuracy is None:
        return NOT_MEASURED
    return f"{100 * (accuracy.mean - reference.mean):+.2f}"


def _naive_table(groups: Sequence[Group]) -> Table:
    rows = [
        [series.label, f"{100 * point.share:g}", str(point.accuracy.count)]
        + [spread(point.accuracy, 100), _left(series.baseline, point.macs_ratio)]
        for series in naive_series(groups)
        for point in series.points
    ]
    return Table(
        "Naive baselines",
        "A trained network of which a share is taken out at random, without any training after. Means over "
        "draws, ± the sample standard deviation. Dropout sets weights to zero, which saves no MACs.",
        ["baseline", "share (%)", "draws", "accuracy (%)", "MACs, left / dense (%)"],
        rows,
        words=1,
    )


def _left(baseline: str, ratio: Stat | None) -> str:
    return "not reduced" if ratio is None and baseline == "dropout" else spread(ratio, 100, digits=1)


def _runs_table(groups: Sequence[Group]) -> Table:
    return Table(
        "Runs",
        "Every run by itself. The last evaluation is of the network in training, with its gates dynamic if it has any.",
        [
            "run",
            "group",
            "state",
            "seed",
            "epochs",
            "accuracy, last evaluation (%)",
            "accuracy, sliced (%)",
            "MACs, left / dense (%)",
        ],
        [_run_row(group, run) for group in groups for run in group.runs],
        words=3,
    )


def _run_row(group: Group, run: StudyRun) -> list[str]:
    last: Mapping[str, Any] = run.evals[-1] if run.evals else {}
    ratio = last.get("macs_ratio") if run.summary is None else run.summary.get("macs_ratio")
    return [
        run.name,
        group.label,
        "unfinished" if run.summary is None else "finished",
        str(run.seed),
        f"{last.get('epoch', 0)} of {run.epochs}" if last else NOT_MEASURED,
        spread(Stat.of([last.get("accuracy")]), 100),
        spread(Stat.of([run.value("accuracy_sliced")]), 100),
        spread(Stat.of([ratio]), 100, digits=1),
    ]
