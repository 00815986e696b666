"""Selection of the units to prune, protected groups, and the status of a budget in the end."""

import pytest
import torch
from budget_helpers import PLACES, TARGET, costs_at, open_in_reference, share_of, units
from torchvision.models import DenseNet, MobileNetV2

from dist_prune import UserError, build_model
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.selection import Selection, budget_status, protected_groups
from dist_prune.pruning.costs import Costs, ModuleCost, unit_costs
from dist_prune.pruning.sites import Site


def test_where_the_least_important_unit_would_miss_the_target_the_next_one_is_pruned_that_meets_it():
    sites = tuple(Site(name, "layer", 1) for name in "abcd")
    costs = Costs(100, 0, sites, tuple(ModuleCost(macs, (), (s,)) for s, macs in enumerate((40, 24, 20, 16))))
    selection, none = Selection(costs, 0.8, []), torch.zeros(4, dtype=torch.bool)
    assert selection.prune_to(torch.tensor([1.0, 2, 3, 4]), none, 0.8).tolist() == [False, False, True, False]
    assert selection.prune_to(torch.tensor([3.0, 2, 1, 4]), none, 0.8).tolist() == [False, False, True, False]
    assert not selection.prune_to(torch.tensor([1.0, 2, 3, 4]), none, 0.95).any(), "not before its time"
    selection = Selection(costs, 0.7, [])  # nothing meets this: 0.76 comes nearest
    assert selection.prune_to(torch.tensor([1.0, 2, 3, 4]), none, 0.7).tolist() == [False, True, False, False]


def test_the_last_one_may_be_the_most_important_of_its_stage_if_the_stage_keeps_another():
    sites = tuple(Site(name, "layer", 1) for name in "abcd")
    costs = Costs(100, 0, sites, tuple(ModuleCost(macs, (), (s,)) for s, macs in enumerate((35, 15, 35, 15))))
    selection, none = Selection(costs, 0.85, [torch.tensor([0, 1]), torch.tensor([2, 3])]), torch.zeros(4)
    importance = torch.tensor([1.0, 2, 3, 4])  # one 15 has to go, and both are first in their stages
    assert selection.prune_to(importance, none.bool(), 0.85).tolist() == [False, True, False, False]
    only_b_is_left = torch.tensor([True, False, False, False])
    assert selection.prune_to(importance, only_b_is_left, 0.5).tolist() == [True, False, False, True]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("macs_allowance", [1.0, 0.93, 0.8, 0.7, 0.0])
def test_the_least_important_units_are_pruned_until_the_others_meet_the_allowance(place, macs_allowance):
    costs = costs_at(place)
    groups = protected_groups(costs, TARGET, allow_empty=False)
    closed = torch.zeros(units(costs), dtype=torch.bool)
    closed[0] = True
    for _ in range(2):
        importance = torch.randn(units(costs))
        opened = ~Selection(costs, TARGET, groups).prune_to(importance, closed, macs_allowance)
        assert torch.equal(opened, open_in_reference(costs, importance, closed, macs_allowance, groups))
        assert all(opened[group].any() for group in groups)
        if 0 < macs_allowance < 0.9:
            assert abs(share_of(costs, opened) - macs_allowance) <= costs.unit_shares().max()


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_one_channel_of_every_site_is_protected(place):
    costs = costs_at(place)
    groups = protected_groups(costs, 0.9, allow_empty=False)
    assert torch.cat(groups).tolist() == list(range(units(costs)))
    assert [len(group) for group in groups] == [site.units for site in costs.sites]


def test_one_layer_of_every_stage_is_protected_unless_the_target_is_out_of_reach_otherwise():
    costs = costs_at("layer", depth=20)
    shares = costs.unit_shares().view(3, 3)
    floor = 1 - (shares.sum() - shares.min(dim=1).values.sum()).item()
    assert [g.tolist() for g in protected_groups(costs, floor + 0.001, False)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert protected_groups(costs, floor - 0.02, False) == []
    assert protected_groups(costs, floor + 0.001, True) == []


def test_sites_may_be_emptied_on_request_where_a_path_remains():
    assert protected_groups(costs_at("between"), 0.5, allow_empty=True) == []
    plain = MobileNetV2(10, width_mult=0.25)
    costs = unit_costs(plain, (3, 32, 32), find_sites(plain, "channel"))
    protected = [len(group) for group in protected_groups(costs, 0.6, allow_empty=True)]
    assert protected == [site.units for site in costs.sites if not site.may_be_empty]
    assert 0 < len(protected) < len(costs.sites)


@pytest.mark.parametrize("make", [lambda: build_model("resnet20", num_classes=10), lambda: DenseNet(4, (2, 2), 8)])
def test_a_target_out_of_reach_is_refused_with_the_smallest_share_there_is(make):
    plain = make()
    position = "between" if isinstance(plain, DenseNet) else "before"
    costs = unit_costs(plain, (3, 32, 32), find_sites(plain, "channel", position))
    floor = costs.of({site.name: (0,) for site in costs.sites}) / costs.dense
    with pytest.raises(
        UserError, match=rf"target_macs={floor - 0.05}.*cannot go below {floor:.3f} of the dense.*position"
    ):
        protected_groups(costs, floor - 0.05, allow_empty=False)
    assert len(protected_groups(costs, floor, allow_empty=False)) == len(costs.sites)
    if position == "before":
        assert floor > 0.3, "the README's example of what this position cannot do"


def test_the_status_says_whether_another_unit_would_have_come_nearer():
    sites = tuple(Site(name, "layer", 1) for name in "abc")
    costs = Costs(100, 0, sites, tuple(ModuleCost(macs, (), (s,)) for s, macs in enumerate((40, 30, 5))))

    def kept(names: str) -> dict[str, tuple[int, ...]]:
        return {site.name: (0,) if site.name in names else () for site in sites}

    assert budget_status(costs, kept("ac"), 0.7) == "met"
    assert budget_status(costs, kept("ac"), 0.705) == "met"
    assert budget_status(costs, kept("ac"), 0.68) == "met as nearly as whole units allow"
    assert budget_status(costs, kept("abc"), 0.68) == "missed"
    assert budget_status(costs, kept(""), 0.68) == "missed"
