"""The MACs budget: state a share of the dense MACs and get it, in one run.

A budget moves the thresholds of all gates during training, so that the most important units are open and meet the MACs
allowance of the moment. The importance of a unit is its mean logit per MAC over the global batch: the logit rises by
what the task loss loses in samples in which the unit is dropped at random (``random_drop``). The allowance falls from
all MACs to the target, so units are pruned one by one, for good, and the network adapts to each loss.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.gates.insertion import shape_gates, strip_gates
from dist_prune.gates.selection import Selection, protected_groups
from dist_prune.gates.wrappers import gates_of, sites
from dist_prune.pruning.costs import Costs, unit_costs

# What ``shape_gates`` gives gates under a budget. All importance scores begin at 0, where weight decay leaves them;
# a gate that is pushed does not push the network whose maps it reads; and what holds for all samples is learned before
# what holds for some.
BUDGET_FORM: dict[str, Any] = {"open_bias": 0.0, "backprop_to_input": False, "logit_scale": 0.1}
_DROP_RATE = 0.1  # share of the samples in which each gate drops units while importance is learned
_SMOOTHING = 0.03  # share of the run over which importance is averaged
_GAP = 0.5  # between the importance of open and pruned units, as a share of the range of all scores
_FAR = 1e4  # below every logit by so much, a threshold holds the gate open, and the gate learns nothing


@dataclass(frozen=True)
class Timeline:
    """Phases of a budget, in shares of the run.

    Attributes:
        warmup_end: until then gates are held open.
        prune_start: until then nothing is pruned, and gates learn the importance of their units.
        prune_end: until then the MACs allowance falls to the target.
        polarize_end: until then the polarization term rises to its full weight.
    """

    warmup_end: float = 0.05
    prune_start: float = 0.15
    prune_end: float = 0.4
    polarize_end: float = 0.6


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


class Budget:
    """Leads the gates of a model to a share of its dense MACs. Plain arithmetic, the same on every rank.

    Gates take the form ``BUDGET_FORM``; ``shape_gates`` afterwards gives them another.

    Args:
        model: the gated network.
        costs: ``unit_costs`` of its sites.
        target: share of the dense MACs.
        timeline: when the budget does what.
        allow_empty: allow channel sites without channels and stages without layers. A stage may lose its last layer
            anyway where the target cannot be met otherwise.

    Attributes:
        logits: mean logits of the latest step in which the unit's gate was evaluated (units,).
        evaluated: units whose gate was evaluated in the latest step (units,), bool.
        importance: averaged importance scores (units,).
        pruned: units that stay closed (units,), bool.
        ste_window: largest distance from its threshold at which a logit has a gradient, for all gates.
        progress: share of the run that was over at the latest step.

    Raises:
        UserError: the sites cannot meet the target, or the gates have no thresholds.
    """

    def __init__(
        self, model: nn.Module, costs: Costs, target: float, timeline: Timeline, allow_empty: bool = False
    ) -> None:
        self.costs = costs
        self.target = target
        self.timeline = timeline
        gates = list(gates_of(model).values())
        if not all(gate.head.supports_budget for gate in gates):
            raise UserError("these gate heads open for about half of the samples, whatever the budget; use 'ste'")
        # Open until the first update.
        for gate in gates:
            gate.threshold.fill_(-_FAR)
        shape_gates(model, **BUDGET_FORM)
        self._selection = Selection(costs, target, protected_groups(costs, target, allow_empty))
        shares = costs.unit_shares().float()
        # Relative to the mean, so that thresholds have the size of logits in networks of every size.
        self._unit_costs = shares / shares.mean()
        self.logits, self.importance = torch.zeros(2, len(shares))
        self.evaluated, self.pruned = torch.zeros(2, len(shares), dtype=torch.bool)
        self.ste_window, self.progress = 1.0, -math.inf

    def macs_allowance(self, progress: float) -> float:
        """Return the share of the dense MACs that open units may cost when ``progress`` of the run is over."""
        t = self.timeline
        return float(np.interp(progress, (t.prune_start, t.prune_end), (1.0, self.target)))

    def polarization_weight(self, progress: float) -> float:
        """Return the weight of the polarization term, which rises once the target is met.

        Gates that it has pushed out of the straight-through window no longer get its gradient (equation 5).
        """
        ramp = float(np.interp(progress, (self.timeline.prune_end, self.timeline.polarize_end), (0.0, 1.0)))
        # Equation 9 is a mean: its gradient on one logit falls with the number of units, and with the window.
        return 0.2 * len(self.importance) * self.ste_window * ramp

    def update(self, model: nn.Module, logits: Tensor, progress: float) -> None:
        """Move the thresholds of all gates; call it after each optimizer step.

        Args:
            model: the gated network.
            logits: mean logits of the units over the global batch (``GateMeans.logits``).
            progress: share of the run that is over, in [0, 1].
        """
        gates = list(gates_of(model).values())
        evaluated = torch.cat([torch.full((gate.units,), not gate.frozen) for gate in gates])
        expected = self._observe(logits.cpu(), evaluated, progress)
        if progress < self.timeline.warmup_end:
            thresholds = torch.full_like(expected, -_FAR)
        else:
            self.pruned = self._selection.prune_to(self.importance, self.pruned, self.macs_allowance(progress))
            thresholds = expected - margins(self.importance, self.pruned) * self._unit_costs
            # While units are pruned every gate has to learn, however far its logit lies from the threshold.
            if progress <= self.timeline.prune_end:
                self.ste_window = max(1.0, 2 * (self.logits - thresholds).abs().max().item())
        for gate, part in zip(gates, thresholds.split([gate.units for gate in gates]), strict=True):
            gate.threshold.copy_(part)
            gate.ste_window.fill_(self.ste_window)
        self.apply(model)

    def _observe(self, logits: Tensor, evaluated: Tensor, progress: float) -> Tensor:
        """Record the logits of a step, average importance, and return the logits expected in the next step (units,)."""
        # Frozen gates have no logits: theirs stay what they were.
        logits = torch.where(evaluated, logits, self.logits)
        # A rise of all logits does not change which unit is important: thresholds must rise as fast.
        expected = torch.where(evaluated & self.evaluated, 2 * logits - self.logits, logits)
        self.logits, self.evaluated = logits, evaluated
        # Scores of single steps are noise. In units of progress, the average is the same for short and long runs.
        weight = 1 - math.exp((self.progress - progress) / _SMOOTHING)
        self.importance = self.importance.lerp(expected / self._unit_costs, weight)
        self.progress = progress
        return expected

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors on the CPU, as an optimizer does; thresholds are buffers of the model."""
        names = ("logits", "importance", "evaluated", "pruned", "ste_window", "progress")
        # 64 bits hold every one of them exactly: a resumed run computes what the uninterrupted one would.
        return {name: torch.as_tensor(getattr(self, name), dtype=torch.float64) for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; then call ``apply`` with the model, which has its own weights and buffers."""
        self.logits, self.importance = state["logits"].float(), state["importance"].float()
        self.evaluated, self.pruned = state["evaluated"] > 0, state["pruned"] > 0
        self.ste_window, self.progress = state["ste_window"].item(), state["progress"].item()

    def apply(self, model: nn.Module) -> None:
        """Set how often gates drop units at random; also for a model that has just been loaded."""
        learning = self.timeline.warmup_end <= self.progress < self.timeline.prune_end
        for gate in gates_of(model).values():
            gate.random_drop = _DROP_RATE * learning


def macs_budget(
    model: nn.Module,
    input_shape: Sequence[int],
    target: float,
    timeline: Timeline | None = None,
    allow_empty: bool = False,
) -> Budget:
    """Return the budget of a gated model, for a training loop of your own.

    In each step add ``polarization(means, budget.polarization_weight(progress))`` to the loss, and after the
    optimizer's step call ``budget.update(model, means.logits, progress)``.

    Args:
        model: the gated network.
        input_shape: of its images, (C, H, W).
        target: share of the dense MACs.
        timeline: see ``Budget``.
        allow_empty: see ``Budget``.
    """
    plain = strip_gates(copy.deepcopy(model))
    costs = unit_costs(plain, input_shape, sites(model))
    return Budget(model, costs, target, timeline or Timeline(), allow_empty)
