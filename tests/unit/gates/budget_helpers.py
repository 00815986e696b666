"""What tests of budgets share: small networks' costs, and the selection of units written out plainly."""

import torch

from dist_prune import build_model
from dist_prune.gates.insertion import find_sites
from dist_prune.pruning.costs import Costs, unit_costs

SHAPE = (3, 16, 16)
TARGET = 0.7
PLACES = ["layer", "before", "between", "after"]


def options(place: str) -> dict[str, str]:
    return {"kind": "layer"} if place == "layer" else {"kind": "channel", "position": place}


def costs_at(place: str, depth: int = 14) -> Costs:
    plain = build_model(f"resnet{depth}", num_classes=10, width=8)
    return unit_costs(plain, SHAPE, find_sites(plain, **options(place)))


def kept_of(costs: Costs, opened: torch.Tensor) -> dict[str, list[int]]:
    parts = opened.split([site.units for site in costs.sites])
    return {s.name: part.nonzero().flatten().tolist() for s, part in zip(costs.sites, parts, strict=True)}


def share_of(costs: Costs, opened: torch.Tensor) -> float:
    return costs.of(kept_of(costs, opened)) / costs.dense


def units(costs: Costs) -> int:
    return sum(site.units for site in costs.sites)


def open_in_reference(
    costs: Costs, importance: torch.Tensor, closed: torch.Tensor, macs_allowance: float, groups
) -> torch.Tensor:
    """One open unit after the other is closed, least important first; the nearest share wins."""
    opened = ~closed
    spared = {max((u for u in group.tolist() if opened[u]), key=lambda unit: importance[unit]) for group in groups}
    rest = [unit for unit in importance.argsort().tolist() if opened[unit] and unit not in spared]
    goal = min(TARGET, macs_allowance)
    while rest and share_of(costs, opened) > macs_allowance:
        chosen = rest[0]
        after = {chosen: share_without(chosen, costs, opened)}
        if after[chosen] < goal - 0.01:  # the last one, and too expensive
            anyone = [u for u in importance.argsort().tolist() if opened[u] and not alone(u, opened, groups)]
            after = {unit: share_without(unit, costs, opened) for unit in anyone}
            fitting = [unit for unit in anyone if abs(after[unit] - goal) <= 0.01]
            chosen = fitting[0] if fitting else min(anyone, key=lambda unit: abs(after[unit] - goal))
        if macs_allowance - after[chosen] > share_of(costs, opened) - macs_allowance:
            break
        opened[chosen] = False
        rest = [unit for unit in rest if unit != chosen]
    return opened


def share_without(unit: int, costs: Costs, opened: torch.Tensor) -> float:
    fewer = opened.clone()
    fewer[unit] = False
    return share_of(costs, fewer)


def alone(unit: int, opened: torch.Tensor, groups: list[torch.Tensor]) -> bool:
    return any(unit in group.tolist() and opened[group].sum() == 1 for group in groups)
