"""Units at several positions of one block are sliced at once, down to none at any of them."""

import copy
import itertools
import random

import pytest
import torch
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import nn
from torchvision.models.resnet import Bottleneck
from unit_helpers import half_resnet, images, relative_difference, shaken

from dist_prune import build_model, load_sliced, save_sliced
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.families import channel_sites
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import remove_units

NETWORKS = {
    "basic A": lambda: build_model("resnet14", num_classes=10, shortcut="A", width=4),
    "basic B": lambda: build_model("resnet14", num_classes=10, shortcut="B", width=4),
    "bottleneck": lambda: half_resnet(Bottleneck),
    "timm": lambda: TimmResNet(
        TimmBasicBlock, (2, 1, 1, 1), num_classes=10, channels=(8, 12, 12, 12), act_layer=nn.SiLU
    ),
}
TOGETHER = [
    positions for count in (2, 3) for positions in itertools.combinations(("before", "between", "after"), count)
]


def random_kept(sites: list[Site], seed: int) -> dict[str, list[int]]:
    """About a third of the sites empty, a third whole, and of the others every second unit."""
    drawn = random.Random(seed)
    shares = {site.name: drawn.choice((0.0, 0.5, 1.0)) for site in sites}
    return {s.name: [u for u in range(s.units) if drawn.random() < shares[s.name]] for s in sites}


def with_zeros(plain: nn.Module, sites: list[Site], kept: dict[str, list[int]]) -> nn.Module:
    """The dense network with the maps of pruned units multiplied by zero: nothing of slicing is in it."""
    model = copy.deepcopy(plain)
    for site in sites:
        mask = torch.zeros(site.units, 1, 1, dtype=torch.float64)
        mask[kept[site.name]] = 1
        module = model.get_submodule(site.gate_at)
        if site.behind:
            module.register_forward_hook(lambda _, inputs, output, mask=mask: output * mask)
        else:
            module.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
    return model


@pytest.mark.parametrize("positions", TOGETHER, ids="+".join)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_slicing_at_several_positions_is_exact_and_costs_what_was_predicted(network, positions):
    plain = shaken(NETWORKS[network]()).double().eval()
    sites = [site for position in positions for site in channel_sites(plain, position)]
    costs, x = unit_costs(plain, (3, 32, 32), sites), images(2, 32, dtype=torch.float64)
    for seed in range(3):
        kept = random_kept(sites, seed)
        small = copy.deepcopy(plain)
        remove_units(small, kept)
        assert relative_difference(small(x), with_zeros(plain, sites, kept)(x)) <= 1e-9, seed
        assert count_macs(small, (3, 32, 32)) == costs.of(kept), seed


@pytest.mark.parametrize("emptied", [("between",), ("after",), ("before", "between"), ("between", "after")])
@torch.no_grad()
def test_an_emptied_position_takes_the_whole_block_with_it(emptied, tmp_path):
    plain = shaken(build_model("resnet20", num_classes=10, width=4)).eval()
    kept = {
        f"{block}.{position}": [] if position in emptied else [0, 2]
        for block in ("layer1.1", "layer2.0")
        for position in ("before", "between", "after")
    }
    small = copy.deepcopy(plain)
    remove_units(small, kept)
    rest = [name for block in ("layer1.1", "layer2.0") for name, _ in small.get_submodule(block).named_modules()]
    assert not any(name.endswith("conv2") for name in rest)
    back, x = load_sliced(save_sliced(small, tmp_path / "sliced")), images(2)
    assert torch.equal(back(x), small(x))
