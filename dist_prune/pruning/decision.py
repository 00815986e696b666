"""Decisions: what a phase of training has found, in one form for masks of units and of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from dist_prune.errors import UserError, nearest
from dist_prune.pruning.costs import Costs
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.weight_mask import WeightMask


class Decision(Protocol):
    """What stays of a network: a ``UnitMask`` (structured) or a ``WeightMask`` (unstructured). Equal on all ranks."""

    kind: ClassVar[str]

    def masked(self, module: nn.Module) -> nn.Module:
        """Return a copy of a plain network as it computes under the decision; eval mode."""

    def sliced(self, module: nn.Module) -> nn.Module:
        """Return the plain network that remains, with the outputs of ``masked``; eval mode."""

    def macs(self, costs: Costs, kept: Mapping[str, Collection[int]]) -> int:
        """Return the MACs of what remains; kept: units that earlier phases left, by site name."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON data about it, the content of mask.json."""

    def tensors(self) -> dict[str, Tensor]:
        """Return tensors that are too large for JSON; empty for units."""

    def figures(self) -> dict[str, Any]:
        """Return the figures for the records of a run, by the names of the records."""

    @classmethod
    def restore(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Decision:
        """Return the decision that ``as_dict`` and ``tensors`` describe; raises UserError if they describe none."""


# Checkpoints name the kind, so that a decision is read by the class that wrote it.
_KINDS: dict[str, type[Decision]] = {UnitMask.kind: UnitMask, WeightMask.kind: WeightMask}


def restore_decision(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Decision:
    """Return the decision of a checkpoint: ``as_dict`` with its ``kind``, and ``tensors``. Raises UserError."""
    kind = str(data.get("kind"))
    if kind not in _KINDS:
        raise UserError(f"unknown kind of decision '{kind}'; {nearest(kind, _KINDS)}")
    return _KINDS[kind].restore(data, tensors)
