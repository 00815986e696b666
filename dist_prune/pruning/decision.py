"""Decisions: what a phase of training has found, in one form for masks of units and of weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dist_prune.errors import UserError, nearest
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.weight_mask import WeightMask

# What stays of a network: units (structured) or weights (unstructured), the same on all ranks. Both can be applied
# (``masked``), made physical (``sliced``), costed (``macs``), recorded (``figures``) and written (``as_dict`` and
# ``tensors``).
Decision = UnitMask | WeightMask


def restore_decision(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Decision:
    """Return the decision of a checkpoint: ``as_dict`` with its ``kind``, and ``tensors``. Raises UserError."""
    # Checkpoints name the kind, so that a decision is read by the class that wrote it.
    kinds: dict[str, type[Decision]] = {UnitMask.kind: UnitMask, WeightMask.kind: WeightMask}
    kind = str(data.get("kind"))
    if kind not in kinds:
        raise UserError(f"unknown kind of decision '{kind}'; {nearest(kind, kinds)}")
    return kinds[kind].restore(data, tensors)
