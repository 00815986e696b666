"""Who has to leave so that what is left costs what may be spent, and what became of a budget in the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from dist_prune.errors import UserError
from dist_prune.pruning.costs import Costs

TOLERANCE = 0.01  # of the dense MACs, around the target


class Selection:
    """Closes the units with the lowest bids, one by one and for good.

    costs: of all units; target: the share of the dense MACs that is to be left in the end; groups: of units (their
    numbers), of which the highest bid of each stays open (``protected_groups``).
    """

    def __init__(self, costs: Costs, target: float, groups: Sequence[Tensor]) -> None:
        self._costs, self._target, self._groups = costs, target, groups

    def closed_after(self, bids: Tensor, closed: Tensor, spending: float) -> Tensor:
        """The closed units (all units, bool) once the lowest bids have left that are too much for the spending.

        Who has left stays out: the network misses every unit at first, so that, given the chance, a unit would
        bid itself back in before the network has learned to do without it.
        """
        if self._share(closed) <= spending:
            return closed
        order = self._order(bids, closed, spared=self._highest(bids, closed))
        closed, surely = closed.clone(), self._count_above(order, closed, spending)
        closed[order[:surely]] = True
        # The last one need not respect whom the highest bids of their groups belong to: whoever fits may leave.
        candidates = self._order(bids, closed, spared=self._alone(closed))
        if len(candidates):
            share, units = self._share(closed), self._costs.unit_shares((~closed).double())
            last = self._last(share, share - units[candidates], spending)
            if last is not None:
                closed[candidates[last]] = True
        return closed

    def _share(self, closed: Tensor) -> float:
        return self._costs.share((~closed).double()).item()

    def _order(self, bids: Tensor, closed: Tensor, spared: list[int]) -> Tensor:
        """The numbers of the standing units that are not spared, lowest bid first."""
        order = bids.masked_fill(closed, -torch.inf).argsort()[int(closed.sum()) :]
        return order[~torch.isin(order, torch.tensor(spared, dtype=torch.long))]

    def _highest(self, bids: Tensor, closed: Tensor) -> list[int]:
        """The standing unit of each group that bids most."""
        standing = bids.masked_fill(closed, -torch.inf)
        return [int(group[standing[group].argmax()]) for group in self._groups]

    def _alone(self, closed: Tensor) -> list[int]:
        """The units that are the last of their groups."""
        standing = [group[~closed[group]] for group in self._groups]
        return [int(units) for units in standing if len(units) == 1]

    def _count_above(self, order: Tensor, closed: Tensor, spending: float) -> int:
        """How many units of ``order`` can leave while the others still cost more than may be spent."""

        few, many = 0, len(order)
        while few < many:
            middle = (few + many) // 2
            if self._share(closed.index_fill(0, order[:middle], True)) > spending:
                few = middle + 1
            else:
                many = middle
        return max(few - 1, 0)

    def _last(self, share: float, after: Tensor, spending: float) -> int | None:
        """Which of the units with the next lowest bids leaves as the last for now; None: none does.

        share: what is left costs, more than may be spent; after: what it will cost when one of these units has left.
        """
        goal, best = min(self._target, spending), 0
        if (
            after[0] < goal - TOLERANCE
        ):  # too dear for the last of all: the lowest bid that fits leaves instead
            off = (after - goal).abs()
            fitting = (off <= TOLERANCE).nonzero().flatten()
            best = int(fitting[0] if len(fitting) else off.argmin())
        return best if spending - after[best] <= share - spending else None


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


def protected_groups(costs: Costs, target: float, allow_empty: bool) -> list[Tensor]:
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
