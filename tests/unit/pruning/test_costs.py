"""Costs of units: each site's share of the MACs."""

import itertools

import pytest
import torch
from torchvision.models import DenseNet
from unit_helpers import shaken, small_vgg

from dist_prune import build_model
from dist_prune.gates.insertion import find_sites
from dist_prune.pruning.costs import Costs, ModuleCost, unit_costs
from dist_prune.pruning.families import channel_sites, layer_sites
from dist_prune.pruning.sites import Site
from dist_prune.recipes import RECIPES, recipe


def by_unit(costs: Costs) -> dict[str, int]:
    """MACs saved by closing each (layer) site alone."""
    return {site.name: costs.dense - costs.of({site.name: ()}) for site in costs.sites}


def floor(costs: Costs) -> int:
    """What is left with all sites closed."""
    return costs.of({site.name: () for site in costs.sites})


def test_a_block_costs_its_two_convolutions_and_norms():
    plain = build_model("resnet8", num_classes=10, width=4)
    costs = unit_costs(plain, (3, 8, 8), layer_sites(plain))
    assert by_unit(costs) == {
        "layer1.0": 2 * (4 * 4 * 9 * 64) + 2 * (2 * 4 * 64),
        "layer2.0": 8 * 4 * 9 * 16 + 8 * 8 * 9 * 16 + 2 * (2 * 8 * 16),
        "layer3.0": 16 * 8 * 9 * 4 + 16 * 16 * 9 * 4 + 2 * (2 * 16 * 4),
    }
    stem = 4 * 3 * 9 * 64 + 2 * 4 * 64
    shortcuts = 8 * 4 * 16 + 2 * 8 * 16 + 16 * 8 * 4 + 2 * 16 * 4
    assert floor(costs) == pytest.approx(stem + shortcuts + 16 * 4 + 160, abs=16 * 4)  # fvcore's pooling
    assert costs.dense == floor(costs) + sum(by_unit(costs).values())


def test_a_channel_costs_what_makes_it_and_what_reads_it():
    plain = build_model("resnet8", num_classes=10, width=4)
    costs = unit_costs(plain, (3, 8, 8), channel_sites(plain, "between"))
    assert {name: costs.dense - costs.of({name: range(1, site.units)}) for name, site in named(costs)} == {
        "layer1.0.between": 4 * 9 * 64 + 2 * 64 + 4 * 9 * 64,
        "layer2.0.between": 4 * 9 * 16 + 2 * 16 + 8 * 9 * 16,
        "layer3.0.between": 8 * 9 * 4 + 2 * 4 + 16 * 9 * 4,
    }


def named(costs: Costs) -> list[tuple[str, Site]]:
    return [(site.name, site) for site in costs.sites]


def test_squeeze_and_excitation_belongs_to_the_branch():
    with_se, plain = (build_model("timm/seresnet18", num_classes=10), build_model("timm/resnet18", num_classes=10))
    costs = unit_costs(shaken(with_se), (3, 32, 32), layer_sites(with_se))
    without = unit_costs(plain, (3, 32, 32), layer_sites(plain))
    assert list(by_unit(costs)) == list(by_unit(without))
    assert all(by_unit(costs)[name] > macs for name, macs in by_unit(without).items())
    assert floor(costs) == floor(without)


LAYERS = Site("a", "layer", 1), Site("b", "layer", 1)
CHANNELS = Site("p", "channel", 4), Site("q", "channel", 2, may_be_empty=False)
PARTS = (  # makes p; reads p and makes q; reads q, two entries a unit; and is gone without p
    ModuleCost(40, ((4, {0: 1}),), ()),
    ModuleCost(80, ((4, {0: 1}), (2, {1: 1})), (0,)),
    ModuleCost(30, ((6, {1: 2}),), (0,)),
)


def test_masks_of_layers_are_priced_by_what_they_close():
    costs = Costs(100, 5, LAYERS, (ModuleCost(20, (), (0,)), ModuleCost(30, (), (1,)), ModuleCost(8, (), (0, 1))))
    assert costs.of({}) == costs.of({"a": (0,), "b": (0,)}) == 100
    assert costs.of({"a": ()}) == 72
    assert costs.of({"a": (), "b": ()}) == 42


def test_masks_of_channels_are_priced_by_the_products_of_what_they_leave():
    costs = Costs(200, 5, CHANNELS, PARTS)
    assert costs.of({}) == 200
    assert costs.of({"p": (1, 3)}) == 200 - 20 - 40
    assert costs.of({"q": (1,)}) == 200 - 40 - 10
    assert costs.of({"p": (0,), "q": (0,)}) == 200 - 30 - 70 - 10
    assert costs.of({"p": ()}) == 200 - 40 - 80 - 30
    # Sites that the costs do not know (units that an earlier phase took) change nothing.
    assert costs.of({"p": (1, 3), "gone": ()}) == costs.of({"p": (1, 3)})


NETWORKS = {
    "layers": (lambda: build_model("resnet14", num_classes=10, width=4), "layer", "between"),
    "before": (lambda: build_model("resnet14", num_classes=10, width=4), "channel", "before"),
    "between": (lambda: build_model("resnet14", num_classes=10, width=4), "channel", "between"),
    "after": (lambda: build_model("resnet14", num_classes=10, width=4), "channel", "after"),
    "vgg": (lambda: small_vgg(batch_norm=True), "channel", "between"),
    "densenet": (lambda: DenseNet(4, (2, 2), 8, num_classes=10), "channel", "between"),
}


def costs_of(name: str) -> Costs:
    make, kind, position = NETWORKS[name]
    plain = make()
    return unit_costs(plain, (3, 32, 32), find_sites(plain, kind, position))


def decisions(costs: Costs, may_be_empty: bool) -> tuple[dict[str, list[int]], torch.Tensor]:
    """A random mask and the same as values; sites may lose all their units or keep one at least."""
    kept = {s.name: [u for u in range(s.units) if torch.rand(()) < 0.4] for s in costs.sites}
    kept = {n: units or ([] if may_be_empty else [0]) for n, units in kept.items()}
    values = [float(u in kept[s.name]) for s in costs.sites for u in range(s.units)]
    return kept, torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_expected_share_of_decided_units_is_that_of_the_mask(name):
    costs = costs_of(name)
    for _ in range(5):
        kept, values = decisions(costs, may_be_empty=name == "layers")
        assert costs.share(values).item() * costs.dense == pytest.approx(costs.of(kept), abs=0.01)
        # fp32, in which gates are averaged, does not round millions of MACs away.
        assert costs.share(values.float()).item() == pytest.approx(costs.of(kept) / costs.dense, abs=1e-6)


def test_the_expected_share_is_the_mean_over_masks_of_units_that_open_on_their_own():
    costs = Costs(200, 5, CHANNELS, PARTS[:1] + tuple(ModuleCost(p.macs, p.dimensions, ()) for p in PARTS[1:]))
    chances = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3, 0.8], dtype=torch.float64)
    mean = 0.0
    for mask in itertools.product((0.0, 1.0), repeat=6):
        values = torch.tensor(mask, dtype=torch.float64)
        mean += torch.where(values > 0, chances, 1 - chances).prod() * costs.share(values)
    assert costs.share(chances).item() == pytest.approx(mean.item(), abs=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_of_the_share_is_that_of_finite_differences(name):
    costs = costs_of(name)
    values = torch.rand(sum(site.units for site in costs.sites), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(costs.share(values), values)
    assert (gradient > 0).all()
    step = torch.eye(len(values), dtype=torch.float64)
    for unit in range(0, len(values), 7):
        ahead, behind = (costs.share(values.detach() + sign * 1e-3 * step[unit]) for sign in (1, -1))
        assert gradient[unit].item() == pytest.approx((ahead - behind).item() / 2e-3, rel=1e-7)
    torch.testing.assert_close(costs.unit_shares(values), gradient)
    ones = torch.ones_like(values).requires_grad_()
    torch.testing.assert_close(costs.unit_shares(), torch.autograd.grad(costs.share(ones), ones)[0])


@pytest.mark.parametrize(("position", "expected"), [("between", 131.4e6), ("after", 192.5e6)])
def test_the_papers_channel_row_of_cifar100_fits_gates_between_the_convolutions(position, expected):
    """Table 2 has 135.41 M MACs with 51.14 % of the units open."""
    config = recipe("cifar100_resnet110_channel")
    plain = build_model(config.model, num_classes=100, **config.model_args)
    costs = unit_costs(plain, (3, 32, 32), channel_sites(plain, position))
    opened = torch.full((sum(site.units for site in costs.sites),), 0.5114, dtype=torch.float64)
    assert costs.share(opened).item() * costs.dense == pytest.approx(expected, rel=1e-3)
    assert (abs(expected - 135.41e6) < 10e6) == (config.gates.position == position)
    assert "fits position between (131 M), not after (193 M)" in (RECIPES[config.name].__doc__ or "")
