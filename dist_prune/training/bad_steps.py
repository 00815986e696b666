"""Steps whose loss or gradients are not finite: skipped on all ranks alike, counted, told, and limited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_prune.checkpoints.train_state import Progress
from dist_prune.errors import RunError
from dist_prune.training.context import RunContext
from dist_prune.training.step import StepMetrics

_SHOWN = 8  # samples of the batch in the line; metrics.jsonl has all of them


class TrainingDiverged(RunError):
    """Loss or gradients are no longer numbers."""


def count_bad_steps(context: RunContext, at: Progress, record: StepMetrics) -> dict[str, list[int]] | None:
    """Take note of a step that was just made; the samples of its batch (by shard) if it was skipped, else None."""
    if record.applied:
        at.bad_in_a_row = 0
        return None
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
    """What is told of a step that was skipped."""
    named = [f"{shard} {row}" for shard, rows in samples.items() for row in rows]
    more = f" and {len(named) - _SHOWN} more (see metrics.jsonl)" if len(named) > _SHOWN else ""
    return (
        f"step {step} skipped: its loss was {record.losses['total']:.4g}, and its gradients not finite; "
        f"its batch (shard and sample): {', '.join(named[:_SHOWN])}{more}"
    )
