"""The MACs budget: say the share, get the share, in one run.

A budget moves the thresholds of all gates during training, so that at every moment the units with the highest
bids are open and cost what may be spent at that moment. A bid is what a gate has learned by gradient: its mean
logit over the global batch, which rises while the task loss wants the unit and falls while it does not (for
layers by the MACs that they cost, for channels beside the others of their site). What may be spent falls from
everything to the target, so units leave one by one, the network adapts to each loss, and a unit that is missed
can bid itself back in.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.gates.insertion import gating_modules, sites, strip_gates
from dist_prune.measure import Costs, unit_costs

TOLERANCE = 0.01  # of the dense MACs, around the target
_SENSITIVITY = (
    0.1  # of gates under a budget: what holds for all samples is learned before what holds for some
)
_FAR = 1e4  # below every logit by so much, a threshold holds the gate open, and the gate learns nothing


@dataclass(frozen=True)
class Timeline:
    """What happens when, in shares of the run.

    Until ``listen`` the gates are held open; until ``begin`` they are open and learn their bids; until ``end``
    what may be spent falls to the target; until ``settled`` the polarization term rises to its full weight.
    """

    listen: float = 0.2
    begin: float = 0.3
    end: float = 0.55
    settled: float = 0.7


class Budget:
    """Leads the gates of one model to a share of its dense MACs; plain arithmetic, the same on every rank.

    model: gated; costs: ``unit_costs`` of its sites; target: the share; allow_empty: let channel sites lose
    their last channel and stages their last layer. (Stages lose it without being asked where the target cannot
    be met otherwise.) All that it remembers lies in buffers of the gates, so that checkpoints hold it. Raises
    UserError if the target is out of reach.
    """

    def __init__(
        self, model: nn.Module, costs: Costs, target: float, timeline: Timeline, allow_empty: bool = False
    ) -> None:
        self.costs = costs
        self.target = target
        self.timeline = timeline
        if not all(gate.head.obeys_thresholds for gate in gating_modules(model)):
            raise UserError(
                "these gate heads open for about half of the samples, whatever the budget; use 'ste'"
            )
        for gate in gating_modules(model):
            gate.feedback = False  # a gate that is pushed must not push the network whose maps it reads
            gate.sensitivity.fill_(_SENSITIVITY)
        shares = costs.unit_shares().float()
        self._unit_costs = shares / shares.mean()  # what a unit costs, next to the others
        self._groups = guarded_groups(costs, target, allow_empty)
        self._reach = 1.0
        self._before: Tensor | None = None  # the mean logits of the step before
        self._starts = torch.cat(
            [torch.full((gate.units,), gate.open_bias or 0.0) for gate in gating_modules(model)]
        )

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
        return 0.2 * len(self._unit_costs) * self._reach * ramp

    def update(self, model: nn.Module, logits: Tensor, progress: float) -> None:
        """After an optimizer step. logits: the units' mean logits over the global batch (``GateMeans.logits``)."""
        logits = logits.cpu()
        expected = logits if self._before is None else 2 * logits - self._before  # in the next step
        self._before = logits
        if progress < self.timeline.listen:
            thresholds = torch.full_like(logits, -_FAR)
        else:
            thresholds = self.thresholds(expected, self.spending(progress))
            if progress <= self.timeline.end:  # so far every gate may learn, however far its logit has moved
                self._reach = max(1.0, 2 * (logits - thresholds).abs().max().item())
        gates = gating_modules(model)
        sizes = [gate.units for gate in gates]
        for gate, part, latest in zip(gates, thresholds.split(sizes), logits.split(sizes), strict=True):
            gate.threshold.copy_(part)
            gate.mean_logits.copy_(latest)
            gate.reach.fill_(self._reach)

    def resume(self, model: nn.Module) -> None:
        """Go on from the buffers of a model that was loaded from a checkpoint."""
        gates = gating_modules(model)
        self._reach = gates[0].reach.item()
        self._before = torch.cat([gate.mean_logits for gate in gates]).cpu()

    def thresholds(self, logits: Tensor, spending: float) -> Tensor:
        """The price of a MAC at which the open units cost what may be spent, as a threshold for each unit."""
        center, scale = self._yardstick(logits)
        bids = (logits - center) / scale
        spared = torch.tensor([int(group[bids[group].argmax()]) for group in self._groups], dtype=torch.long)
        order = bids.argsort()
        order = order[~torch.isin(order, spared)]  # the highest bid of each guarded group stays open
        margin = max(1.0, (bids.max() - bids.min()).item() / 2)  # where there is no bid on the other side
        if not len(order):
            return logits - margin * scale
        closed = self._count_to_close(order, spending)
        lowest_open = bids[order[closed]] if closed < len(order) else bids[order[-1]] + 2 * margin
        highest_closed = bids[order[closed - 1]] if closed else lowest_open - 2 * margin
        price = (lowest_open + highest_closed) / 2
        prices = torch.full_like(bids, price.item())
        prices[spared] = torch.minimum(prices[spared], bids[spared] - margin)
        return center + prices * scale

    def _yardstick(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What bids are counted from, and in which unit (both for all units).

        Layers: from where logits began, by MACs. Channels: from the mean of their site, by its standard deviation:
        the norm behind a site makes up for its scale, so that how much the task loss asks for a channel says
        something beside the other channels of its site only.
        """
        if self.costs.sites[0].kind == "layer":
            return self._starts, self._unit_costs
        center, scale = torch.empty_like(logits), torch.empty_like(logits)
        first = 0
        for site in self.costs.sites:
            part = slice(first, first + site.units)
            center[part] = logits[part].mean()
            scale[part] = logits[part].std(correction=0).clamp_min(1e-3)
            first += site.units
        return center, scale

    def _count_to_close(self, order: Tensor, spending: float) -> int:
        """How many units of ``order`` to close so that the others come nearest to the spending."""
        few, many = 0, len(order)
        while few < many:
            middle = (few + many) // 2
            if self._share(order[:middle]) > spending:
                few = middle + 1
            else:
                many = middle
        if few and spending - self._share(order[:few]) > self._share(order[: few - 1]) - spending:
            return few - 1
        return few

    def _share(self, closed: Tensor) -> float:
        values = torch.ones(len(self._unit_costs))
        values[closed] = 0
        return self.costs.share(values).item()


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


def outcome(costs: Costs, kept: Mapping[str, Collection[int]], target: float) -> str:
    """What became of a budget, in words: met, met as nearly as whole units allow, or missed."""
    share = costs.of(kept) / costs.dense
    if abs(share - target) <= TOLERANCE:
        return "met"
    values = torch.cat(
        [torch.zeros(site.units).index_fill(0, _index(kept[site.name]), 1) for site in costs.sites]
    )
    units = costs.unit_shares(values)
    flipped = share + torch.where(values == 1, -units, units)
    nearest = (flipped - target).abs().min() >= abs(share - target)
    return "met as nearly as whole units allow" if nearest else "missed"


def _index(units: Collection[int]) -> Tensor:
    return torch.tensor(list(units), dtype=torch.long)


def guarded_groups(costs: Costs, target: float, allow_empty: bool) -> list[Tensor]:
    """Groups of units (their numbers) of which one has to stay open: a site's channels, a stage's layers.

    Raises UserError if the target cannot be met, naming the smallest share that can.
    """
    members: dict[str, list[int]] = defaultdict(list)
    first, layers = 0, costs.sites[0].kind == "layer"
    for site in costs.sites:
        if layers or not (allow_empty and site.may_be_empty):
            members[site.stage if layers else site.name] += range(first, first + site.units)
        first += site.units
    groups = [torch.tensor(units) for units in members.values()]
    if layers and (allow_empty or _floor(costs, groups) > target + TOLERANCE):
        groups = []
    floor = _floor(costs, groups)
    if floor > target + TOLERANCE:
        raise UserError(
            f"target_macs={target} is out of reach: the gates at these sites leave {floor:.3f} of the dense MACs "
            "at least; raise the target, or choose another gates.position"
        )
    return groups


def _floor(costs: Costs, groups: Sequence[Tensor]) -> float:
    shares = costs.unit_shares()
    values = torch.zeros(len(shares))
    for group in groups:
        values[group[shares[group].argmin()]] = 1
    return costs.share(values).item()


def _ramp(progress: float, begin: float, end: float) -> float:
    """0 before ``begin``, 1 after ``end``, a straight line between them."""
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)
