"""The table of a study that says what each group spent to reach an accuracy, against the dense network."""

from collections.abc import Callable, Sequence

from dist_prune.monitor.compare import Group, Stat, dense_group
from dist_prune.monitor.study_tables import Table, spread
from dist_prune.monitor.to_accuracy import Reached, reached
from dist_prune.monitor.wording import percent

_NOT_REACHED = "not reached"


def cost_table(groups: Sequence[Group], accuracy: float) -> Table:
    """Time and energy to a test accuracy (a fraction) of every group that has finished runs."""
    return Table(
        f"Time and energy to {percent(accuracy)}",
        f"Up to the end of the first epoch after which the test accuracy was {percent(accuracy)} or more (of gated "
        "networks: with the gates fixed to the mask, and the MACs of what a collapse would have left then). Means over "
        "the finished runs that reached it, ± the sample standard deviation; the ratios are to the dense group of the "
        "same network.",
        [
            "group",
            "reached by",
            "epochs",
            "time (s)",
            "time / dense",
            "energy (kJ)",
            "energy / dense",
            "MACs then / dense (%)",
        ],
        [_row(group, groups, accuracy) for group in groups if _finished(group)],
        words=1,
    )


def _row(group: Group, groups: Sequence[Group], accuracy: float) -> list[str]:
    found = _reached(group, accuracy)
    head = [group.label, f"{len(found)} of {_finished(group)}"]
    if not found:
        return [*head, *[_NOT_REACHED] * 6]
    dense = dense_group(group, groups)
    of_dense = _reached(dense, accuracy) if dense else []
    return [
        *head,
        spread(Stat.of(one.epoch for one in found), digits=1),
        spread(Stat.of(one.seconds for one in found), digits=0),
        _ratio(found, of_dense, lambda one: one.seconds),
        spread(_whole(found), 1e-3),
        _ratio(found, of_dense, lambda one: one.joules),
        spread(Stat.of(one.macs_ratio for one in found), 100, digits=1),
    ]


def _finished(group: Group) -> int:
    return sum(run.summary is not None for run in group.runs)


def _reached(group: Group, accuracy: float) -> list[Reached]:
    found = [reached(run.evals, accuracy) for run in group.runs if run.summary is not None]
    return [one for one in found if one is not None]


def _whole(found: Sequence[Reached]) -> Stat | None:
    """Energy, if that of all these runs was measured: others would be other runs than the time is of."""
    return Stat.of(one.joules for one in found) if all(one.joules is not None for one in found) else None


def _ratio(found: Sequence[Reached], dense: Sequence[Reached], of: Callable[[Reached], float | None]) -> str:
    mine, theirs = ([of(one) for one in runs] for runs in (found, dense))
    if None in mine or None in theirs or not theirs:
        return spread(None)
    ours, reference = Stat.of(mine), Stat.of(theirs)
    assert ours is not None
    assert reference is not None
    return f"{ours.mean / reference.mean:.2f}"
