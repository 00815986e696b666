"""The MACs budget: say the share, get the share, in one run.

A budget moves the thresholds of all gates during training, so that at every moment the units with the highest
bids are open and cost what may be spent at that moment. A bid is what a gate has learned by gradient, per MAC: its
mean logit over the global batch, which rises by what the task loss misses the unit in samples that do without it
(``exploration``). What may be spent falls from everything to the target, so units leave one by one, for good, and
the network adapts to each loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.gates.bids import Memory, margins
from dist_prune.gates.insertion import gating_modules, shape_gates, sites, strip_gates
from dist_prune.gates.modules import GatingModule
from dist_prune.gates.selection import Selection, protected_groups
from dist_prune.pruning.costs import Costs, unit_costs

# What ``shape_gates`` gives gates under a budget. All importance scores begin at 0, where weight decay leaves them;
# a gate that is pushed does not push the network whose maps it reads; and what holds for all samples is learned before
# what holds for some.
BUDGET_FORM: dict[str, Any] = {"open_bias": 0.0, "backprop_to_input": False, "logit_scale": 0.1}
_EXPLORED = 0.1  # of the samples, by each gate, while it learns its bids
_FAR = 1e4  # below every logit by so much, a threshold holds the gate open, and the gate learns nothing


@dataclass(frozen=True)
class Timeline:
    """What happens when, in shares of the run.

    Until ``listen`` the gates are held open; until ``begin`` they explore and learn their bids; until ``end``
    what may be spent falls to the target; until ``settled`` the polarization term rises to its full weight.
    """

    listen: float = 0.05
    begin: float = 0.15
    end: float = 0.4
    settled: float = 0.6


class Budget:
    """Leads the gates of one model to a share of its dense MACs; plain arithmetic, the same on every rank.

    model: gated; costs: ``unit_costs`` of its sites; target: the share; allow_empty: let channel sites lose
    their last channel and stages their last layer. (Stages lose it without being asked where the target cannot
    be met otherwise.) Gates take the form ``BUDGET_FORM``; ``shape_gates`` afterwards gives them another.
    ``state_dict`` holds all that it remembers, as an optimizer's does. Raises
    UserError if the target is out of reach.
    """

    def __init__(
        self, model: nn.Module, costs: Costs, target: float, timeline: Timeline, allow_empty: bool = False
    ) -> None:
        self.costs = costs
        self.target = target
        self.timeline = timeline
        gates = gating_modules(model)
        if not all(gate.head.supports_budget for gate in gates):
            raise UserError(
                "these gate heads open for about half of the samples, whatever the budget; use 'ste'"
            )
        for gate in gates:
            gate.threshold.fill_(-_FAR)
        shape_gates(model, **BUDGET_FORM)
        self._selection = Selection(costs, target, protected_groups(costs, target, allow_empty))
        shares = costs.unit_shares().float()
        self._prices = shares / shares.mean()  # what a unit costs, next to the others
        self._memory = Memory(gates)

    def spending(self, progress: float) -> float:
        """The share of the dense MACs that may be spent when ``progress`` of the run is over."""
        t = self.timeline
        return 1 - (1 - self.target) * _ramp(progress, t.begin, t.end)

    def polarization_weight(self, progress: float) -> float:
        """A weight for the polarization term, which rises once the target is met.

        Equation 9 is a mean, so its push on one logit falls with the number of units, and with the gates' reach;
        the weight makes up for both. Gates that it has pushed out of reach feel it no longer (equation 5).
        """
        ramp = _ramp(progress, self.timeline.end, self.timeline.settled)
        return 0.2 * len(self._memory.bids) * self._memory.reach * ramp

    def update(self, model: nn.Module, logits: Tensor, progress: float) -> None:
        """After an optimizer step. logits: the units' mean logits over the global batch (``GateMeans.logits``)."""
        memory, gates = self._memory, gating_modules(model)
        asked = torch.cat([torch.full((gate.units,), not gate.frozen) for gate in gates])
        expected = memory.expect(logits.cpu(), asked)
        memory.average_bids(expected / self._prices, progress)
        memory.progress = progress
        if progress < self.timeline.listen:
            thresholds = torch.full_like(expected, -_FAR)
        else:
            memory.closed = self._selection.closed_after(memory.bids, memory.closed, self.spending(progress))
            thresholds = expected - margins(memory.bids, memory.closed) * self._prices
            if progress <= self.timeline.end:  # so far every gate may learn, however far its logit has moved
                memory.reach = max(1.0, 2 * (memory.logits - thresholds).abs().max().item())
        memory.store(gates, thresholds)
        self._explore(gates)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state as tensors on the CPU; thresholds are buffers of the model."""
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``; then call ``apply`` with the model, which has its own weights and buffers."""
        self._memory.load_state_dict(state)

    def apply(self, model: nn.Module) -> None:
        """Let the gates of a model that has just been loaded explore as the budget's progress demands."""
        self._explore(gating_modules(model))

    def _explore(self, gates: Sequence[GatingModule]) -> None:
        progress = self._memory.progress
        learning = progress is not None and self.timeline.listen <= progress < self.timeline.end
        for gate in gates:
            gate.exploration = _EXPLORED * learning


def macs_budget(
    model: nn.Module,
    input_shape: Sequence[int],
    target: float,
    timeline: Timeline | None = None,
    allow_empty: bool = False,
) -> Budget:
    """The budget of a gated model for a training loop of your own; see ``Budget``. input_shape: (C, H, W).

    In each step add ``polarization(means, budget.polarization_weight(progress))`` to the loss, and after the
    optimizer's step call ``budget.update(model, means.logits, progress)``; progress: the share of the run that
    is over, in [0, 1].
    """
    plain = strip_gates(copy.deepcopy(model))
    costs = unit_costs(plain, input_shape, sites(model))
    return Budget(model, costs, target, timeline or Timeline(), allow_empty)


def _ramp(progress: float, begin: float, end: float) -> float:
    """0 before ``begin``, 1 after ``end``, a straight line between them."""
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)
