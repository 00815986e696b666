"""What it took to reach an accuracy: epochs, time and energy up to the first evaluation that shows it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dist_prune.monitor.records import Record


class Reached(NamedTuple):
    """epoch: of the evaluation; seconds and joules (None: not measured) of the run until then; macs_ratio: of the
    network as it would have been collapsed then."""  # fmt: skip

    epoch: int
    seconds: float
    joules: float | None
    macs_ratio: float | None


def reached(evals: Sequence[Record], accuracy: float) -> Reached | None:
    """The first of the eval records with this test accuracy (a fraction) or more; None where there is none.

    Of a gated network the accuracy counts that it has with its gates fixed to the mask, as after a collapse.
    """
    for number, record in enumerate(evals, start=1):
        shown = record.get("accuracy_consensus")
        shown = record.get("accuracy") if shown is None else shown
        if shown is not None and shown >= accuracy:
            joules = total_joules(evals[:number])
            return Reached(record["epoch"], record["seconds"], joules, record.get("macs_ratio"))
    return None


def total_joules(evals: Iterable[Record]) -> float | None:
    """The energy of these epochs; None if one of them was not measured, or there is none."""
    parts = [record.get("energy_joules") for record in evals]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None
