"""Cost of an accuracy: epochs, time and energy up to the first evaluation that shows it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dist_prune.monitor.records import Record


class Reached(NamedTuple):
    """The cost of an accuracy.

    epoch: of the evaluation that shows it; seconds, joules: of the run until then, None where not measured;
    macs_ratio: of the network that a collapse would have made then.
    """

    epoch: int
    seconds: float
    joules: float | None
    macs_ratio: float | None


def reached(evals: Sequence[Record], accuracy: float) -> Reached | None:
    """Return the cost up to the first eval record with this test accuracy (a fraction) or more, None without one.

    For gated networks the accuracy with the gates fixed to the mask counts, as after a collapse.
    """
    for number, record in enumerate(evals, start=1):
        shown = record.get("accuracy_consensus")
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
