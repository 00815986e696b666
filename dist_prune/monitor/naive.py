"""Naive baselines of a study: a trained network of which a random share is taken out."""

from collections.abc import Sequence
from typing import NamedTuple

from dist_prune.monitor.compare import Group, Stat, StudyRun
from dist_prune.monitor.records import Record

_LABELS = {"dropout": "naive dropout", "layers": "naive layer pruning"}


class NaivePoint(NamedTuple):
    """What is left after a share (a fraction) is taken out, over all draws.

    accuracy: a fraction; macs_ratio: MACs left over those of the dense network, None where none are saved.
    """

    share: float
    accuracy: Stat
    macs_ratio: Stat | None


class NaiveSeries(NamedTuple):
    """One baseline in one group, by rising share."""

    baseline: str
    label: str
    group: Group
    points: Sequence[NaivePoint]


def naive_series(groups: Sequence[Group]) -> list[NaiveSeries]:
    """From the naive.json files, pooled over the runs of each group; it is named where several groups have some."""
    several = sum(any(run.naive for run in group.runs) for group in groups) > 1
    found = []
    for group in groups:
        entries = [_of_dense(entry, run) for run in group.runs for entry in run.naive]
        for baseline in dict.fromkeys(entry["baseline"] for entry in entries):
            label = _LABELS.get(baseline, f"naive {baseline}") + (f" of {group.label}" if several else "")
            points = _points([entry for entry in entries if entry["baseline"] == baseline])
            if points:
                found.append(NaiveSeries(baseline, label, group, points))
    return found


def _of_dense(entry: Record, run: StudyRun) -> Record:
    """The entry with its ratio over the dense network; naive.json has it over the run's sliced network."""
    ratio, own = entry.get("macs_ratio"), run.value("macs_ratio")
    return {**entry, "macs_ratio": None if ratio is None or own is None else ratio * own}


def _points(entries: Sequence[Record]) -> list[NaivePoint]:
    found = []
    for share in sorted({entry["share"] for entry in entries}):
        draws = [entry for entry in entries if entry["share"] == share]
        accuracy = Stat.of(entry["accuracy"] for entry in draws)
        if accuracy is not None:
            found.append(NaivePoint(share, accuracy, Stat.of(entry["macs_ratio"] for entry in draws)))
    return found
