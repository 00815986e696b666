"""State of a MACs budget: importance scores of all units, and which of them are pruned."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_SMOOTHING = 0.03  # share of the run over which importance is averaged
_GAP = 0.5  # between the importance of open and pruned units, as a share of the range of all scores


def margins(importance: Tensor, pruned: Tensor) -> Tensor:
    """Return the signed distance of each unit from the cut between open and pruned units.

    Args:
        importance: importance scores (units,).
        pruned: pruned units (units,), bool.

    Returns:
        Distances (units,): positive for open units, negative for pruned ones.
    """
    gap = max(1.0, _GAP * (importance.max() - importance.min()).item())
    lowest = importance[~pruned].min() if not pruned.all() else importance.max() + gap
    # Pruned units may score above open ones again. They count as a gap below the lowest of these.
    scores = torch.where(pruned, torch.minimum(importance, lowest - gap), importance)
    # The cut lies in the middle of the gap, so that small changes of a logit flip no decision.
    return scores - lowest + gap / 2


class BudgetState:
    """State of a budget, from one step to the next.

    Attributes:
        logits: mean logits of the latest step in which the unit's gate was evaluated (units,).
        evaluated: units whose gate was evaluated in the latest step (units,), bool.
        importance: averaged importance scores (units,).
        pruned: units that stay closed (units,), bool.
        ste_window: largest distance from its threshold at which a logit has a gradient, for all gates.
        progress: share of the run that was over at the latest step.
    """

    def __init__(self, units: int) -> None:
        self.logits, self.importance = torch.zeros(2, units)
        self.evaluated, self.pruned = torch.zeros(2, units, dtype=torch.bool)
        self.ste_window = 1.0
        self.progress = -math.inf

    def observe(self, logits: Tensor, evaluated: Tensor, unit_costs: Tensor, progress: float) -> Tensor:
        """Record the logits of a step, average importance, and return the logits expected in the next step.

        Args:
            logits: mean logits (units,).
            evaluated: units whose gate was evaluated (units,), bool.
            unit_costs: MACs of each unit relative to their mean (units,).
            progress: share of the run that is over.
        """
        # Frozen gates have no logits: theirs stay what they were.
        logits = torch.where(evaluated, logits, self.logits)
        # A rise of all logits does not change which unit is important: thresholds must rise as fast.
        expected = torch.where(evaluated & self.evaluated, 2 * logits - self.logits, logits)
        self.logits, self.evaluated = logits, evaluated
        # Scores of single steps are noise. In units of progress, the average is the same for short and long runs.
        weight = 1 - math.exp((self.progress - progress) / _SMOOTHING)
        self.importance = self.importance.lerp(expected / unit_costs, weight)
        self.progress = progress
        return expected

    def state_dict(self) -> dict[str, Tensor]:
        """Return all attributes as tensors, copied."""
        # 64 bits hold every one of them exactly: a resumed run computes what the uninterrupted one would.
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what ``state_dict`` returned."""
        self.logits, self.importance = state["logits"].float(), state["importance"].float()
        self.evaluated, self.pruned = state["evaluated"] > 0, state["pruned"] > 0
        self.ste_window, self.progress = state["ste_window"].item(), state["progress"].item()
