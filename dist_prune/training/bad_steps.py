"""Steps whose loss or gradients are not finite: skipped on all ranks, counted, reported and limited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_prune.checkpoints.train_state import Progress
from dist_prune.errors import RunError
from dist_prune.training.context import RunContext
from dist_prune.training.step import StepMetrics

# Samples of the batch that the line names; metrics.jsonl has all of them.
_SHOWN = 8


class TrainingDiverged(RunError):
    """Loss or gradients are not finite in too many steps in a row."""


def count_bad_steps(context: RunContext, at: Progress, record: StepMetrics) -> dict[str, list[int]] | None:
    """Count a step; return the samples of its batch, by shard, if it was skipped, else None."""
    if record.applied:
        at.bad_in_a_row = 0
        return None
    # The order of samples is a function of epoch and step, so any step's batch can be named afterwards.
    at.steps_skipped += 1
    at.bad_in_a_row += 1
    return context.data.samples_of_step(at.epoch, at.batch - 1, context.config.global_batch_size)


def refuse_too_many(at: Progress, limit: int) -> None:
    """Raise TrainingDiverged, on all ranks alike, if more steps in a row were skipped than ``limit``."""
    count = at.bad_in_a_row
    if count > limit:
        where = f"step {at.step}" if count == 1 else f"the {count} steps up to {at.step}"
        raise TrainingDiverged(
            f"loss or gradients were not finite in {where}, more in a row than max_bad_steps={limit}: lower lr, or set "
            "gradient_clipping in the DeepSpeed config; nothing was learned there"
        )


def line_about(step: int, record: StepMetrics, samples: Mapping[str, Sequence[int]]) -> str:
    """Return the console line about a skipped step."""
    named = [f"{shard} {row}" for shard, rows in samples.items() for row in rows]
    more = f" and {len(named) - _SHOWN} more (see metrics.jsonl)" if len(named) > _SHOWN else ""
    return (
        f"step {step} skipped: its loss was {record.losses['total']:.4g}, and its gradients not finite; "
        f"its batch (shard and sample): {', '.join(named[:_SHOWN])}{more}"
    )
