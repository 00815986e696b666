"""What a study weighs: of every group and baseline, how much was taken out and what accuracy is left."""

from collections.abc import Sequence
from typing import NamedTuple

from dist_prune.monitor.compare import Group, Stat, dense_group
from dist_prune.monitor.naive import NaiveSeries, naive_series
from dist_prune.monitor.study_labels import family, labels, short_labels


class Point(NamedTuple):
    """What a group came to: shares taken out and accuracies, all fractions; None where not measured."""

    pruned: Stat | None
    saved: Stat | None
    accuracy: Stat
    drop: Stat | None


class Series(NamedTuple):
    """Points of one family of groups, or of a naive baseline; they differ in how much is taken out."""

    label: str
    points: Sequence[Point]
    naive: bool


def all_series(groups: Sequence[Group]) -> list[Series]:
    """The finished groups by family, those of a family by rising savings; then the naive baselines."""
    families: dict[tuple[tuple[str, str], ...], list[Group]] = {}
    for group in groups:
        if group.stat("accuracy_sliced"):
            families.setdefault(tuple(sorted(family(group.settings).items())), []).append(group)
    names = short_labels(labels([family(members[0].settings) for members in families.values()]))
    found = [
        Series(name, _sorted([_point(group, groups) for group in members]), naive=False)
        for name, members in zip(names, families.values(), strict=True)
    ]
    return found + [_naive(series, groups) for series in naive_series(groups)]


def _point(group: Group, groups: Sequence[Group]) -> Point:
    accuracy, dense = group.stat("accuracy_sliced"), dense_group(group, groups)
    assert accuracy is not None
    pruned = Stat(0.0) if group.is_dense else _rest(group.stat("open_ratio"))
    return Point(pruned, _rest(group.stat("macs_ratio")), accuracy, _below(accuracy, dense))


def _naive(series: NaiveSeries, groups: Sequence[Group]) -> Series:
    dense = dense_group(series.group, groups)
    points = [
        Point(Stat(one.share), _rest(one.macs_ratio), one.accuracy, _below(one.accuracy, dense))
        for one in series.points
    ]
    return Series(series.label, points, naive=True)


def _rest(share: Stat | None) -> Stat | None:
    """The share that is gone, from the one that is left."""
    return share and Stat(1 - share.mean, share.deviation, share.count)


def _below(accuracy: Stat, dense: Group | None) -> Stat | None:
    """How far below the dense group's mean; the deviation is that of `accuracy` alone."""
    reference = dense.stat("accuracy_sliced") if dense else None
    return reference and Stat(reference.mean - accuracy.mean, accuracy.deviation, accuracy.count)


def _sorted(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.saved.mean if point.saved else 0.0)
