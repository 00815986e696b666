"""Selection of the units to prune to meet the MACs budget, and whether the budget was met in the end."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from dist_prune.errors import UserError
from dist_prune.pruning.costs import Costs

TOLERANCE = 0.01  # of the dense MACs, around the target


class Selection:
    """Selects the least important units, one by one and for good.

    Args:
        costs: of all units.
        target: share of the dense MACs in the end.
        groups: groups of units (their numbers), each of which keeps one unit (``protected_groups``).
    """

    def __init__(self, costs: Costs, target: float, groups: Sequence[Tensor]) -> None:
        self._costs, self._target, self._groups = costs, target, groups

    def prune_to(self, importance: Tensor, pruned: Tensor, allowance: float) -> Tensor:
        """Return all pruned units (units,), bool, once the others meet the MACs allowance.

        Args:
            importance: importance scores (units,).
            pruned: units that are pruned already (units,), bool.
            allowance: share of the dense MACs that open units may cost.
        """
        # Pruned units stay pruned. The network misses every unit at first, so each would come back, and another leave
        # in its place, before the network has learned to do without it.
        if self._share(pruned) <= allowance:
            return pruned
        scores = importance.masked_fill(pruned, -torch.inf)
        most_important = [int(group[scores[group].argmax()]) for group in self._groups]
        order = self._by_importance(importance, pruned, without=most_important)
        pruned, surely = pruned.clone(), self._count_above(order, pruned, allowance)
        pruned[order[:surely]] = True
        # The last unit may be the most important one of its group, as long as the group keeps another: so targets
        # between the costs of few large units are met more closely.
        opened = [group[~pruned[group]] for group in self._groups]
        only = [int(units) for units in opened if len(units) == 1]
        candidates = self._by_importance(importance, pruned, without=only)
        if len(candidates):
            share, unit_costs = self._share(pruned), self._costs.unit_shares((~pruned).double())
            last = self._last(share, share - unit_costs[candidates], allowance)
            if last is not None:
                pruned[candidates[last]] = True
        return pruned

    def _share(self, pruned: Tensor) -> float:
        return self._costs.share((~pruned).double()).item()

    def _by_importance(self, importance: Tensor, pruned: Tensor, without: list[int]) -> Tensor:
        """Return the numbers of the open units, least important first."""
        order = importance.masked_fill(pruned, -torch.inf).argsort()[int(pruned.sum()) :]
        return order[~torch.isin(order, torch.tensor(without, dtype=torch.long))]

    def _count_above(self, order: Tensor, pruned: Tensor, allowance: float) -> int:
        """Return the largest number of units of ``order`` without which the others still exceed the allowance."""
        # By bisection: thousands of units may have to be pruned in one step.
        few, many = 0, len(order)
        while few < many:
            middle = (few + many) // 2
            if self._share(pruned.index_fill(0, order[:middle], True)) > allowance:
                few = middle + 1
            else:
                many = middle
        return max(few - 1, 0)

    def _last(self, share: float, after: Tensor, allowance: float) -> int | None:
        """Return the position of the candidate that is pruned last in this step, or None for none of them.

        ``share``, above the allowance, is what open units cost now; ``after``, least important first, (candidates,),
        what they cost with one candidate pruned.
        """
        goal, best = min(self._target, allowance), 0
        # The least important unit is too expensive: prune the least important one that meets the target, or the one
        # that comes nearest to it.
        if after[0] < goal - TOLERANCE:
            off = (after - goal).abs()
            fitting = (off <= TOLERANCE).nonzero().flatten()
            best = int(fitting[0] if len(fitting) else off.argmin())
        return best if allowance - after[best] <= share - allowance else None


def budget_status(costs: Costs, kept: Mapping[str, Collection[int]], target: float) -> str:
    """Return ``met``, ``met as nearly as whole units allow``, or ``missed``.

    Args:
        costs: of all units.
        kept: the units that stay, by site name.
        target: share of the dense MACs.
    """
    share = costs.of(kept) / costs.dense
    if abs(share - target) <= TOLERANCE:
        return "met"
    opened = {(name, unit) for name, units in kept.items() for unit in units}
    values = torch.tensor([float((site.name, u) in opened) for site in costs.sites for u in range(site.units)])
    units = costs.unit_shares(values)
    # No other decision about a single unit would come nearer.
    flipped = share + torch.where(values == 1, -units, units)
    nearest = (flipped - target).abs().min() >= abs(share - target)
    return "met as nearly as whole units allow" if nearest else "missed"


def protected_groups(costs: Costs, target: float, allow_empty: bool) -> list[Tensor]:
    """Return groups of units (their numbers), each of which keeps one: a site's channels, a stage's layers.

    Args:
        costs: of all units.
        target: share of the dense MACs.
        allow_empty: protect only sites that must not be empty.

    Raises:
        UserError: the target cannot be met; names the smallest share that can.
    """
    members: dict[str, list[int]] = defaultdict(list)
    first, layers = 0, costs.sites[0].kind == "layer"
    for site in costs.sites:
        if layers or not (allow_empty and site.may_be_empty):
            members[site.stage if layers else site.name] += range(first, first + site.units)
        first += site.units
    groups = [torch.tensor(units) for units in members.values()]
    # A stage without layers still has its shortcuts, so the target comes first.
    if layers and (allow_empty or _floor(costs, groups) > target + TOLERANCE):
        groups = []
    floor = _floor(costs, groups)
    if floor > target + TOLERANCE:
        raise UserError(
            f"target_macs={target} is out of reach: gates at these sites cannot go below {floor:.3f} of the dense "
            "MACs; raise the target, or choose another gates.position"
        )
    return groups


def _floor(costs: Costs, groups: Sequence[Tensor]) -> float:
    """Return the share of the dense MACs when each group keeps its cheapest unit and everything else is pruned."""
    shares = costs.unit_shares()
    values = torch.zeros(len(shares))
    for group in groups:
        values[group[shares[group].argmin()]] = 1
    return costs.share(values).item()
