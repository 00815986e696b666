"""The network built by hand has the shape of the sliced one: given its weights, it computes the same."""

import random

import pytest
import torch
import torchvision
from unit_helpers import images, shaken

from dist_prune import build_model
from dist_prune.benchmark.reference_network import reference_network
from dist_prune.measure.macs import count_macs, count_parameters
from dist_prune.models.build import architecture_of
from dist_prune.pruning.families import channel_sites, layer_sites
from dist_prune.pruning.slicing import slice_network

NETWORKS = {
    "cifar A": lambda: build_model("resnet14", num_classes=10, shortcut="A", width=4),
    "cifar B": lambda: build_model("resnet14", num_classes=10, width=4),
    "resnet18": lambda: build_model("resnet18", num_classes=10),
    "resnet50": lambda: build_model("resnet50", num_classes=10),
    "resnext50": lambda: build_model("resnext50_32x4d", num_classes=10),
}


def sliced(plain, position: str, share: float, seed: int = 0):
    drawn = random.Random(seed)
    sites = layer_sites(plain) if position == "layer" else channel_sites(plain, position)
    kept = {s.name: [unit for unit in range(s.units) if drawn.random() < share] for s in sites}
    kept = {s.name: kept[s.name] or ([] if position == "layer" else [0]) for s in sites}
    small, _ = slice_network(plain, kept)
    return small.eval(), kept


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "position"),
    [(name, position) for name in NETWORKS for position in ("layer", "between")][:-1],  # its channels are grouped
)
def test_with_the_weights_of_the_sliced_network_it_has_its_outputs(name, position):
    plain = shaken(NETWORKS[name]()).eval()
    for seed, share in ((0, 0.5), (1, 0.0)):
        small, kept = sliced(plain, position, share, seed)
        hand = reference_network(architecture_of(plain), kept)
        ours = hand.state_dict()
        hand.load_state_dict(dict(zip(ours, small.state_dict().values(), strict=True)))
        x = images(2, 32)
        torch.testing.assert_close(hand(x), small(x), rtol=1e-4, atol=1e-5)
        assert count_macs(hand, (3, 32, 32)) == count_macs(small, (3, 32, 32))
        assert count_parameters(hand) == count_parameters(small)
        assert not {type(module).__module__ for module in hand.modules()} & {"torchvision.models.resnet"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_vgg_has_a_reference_network_as_well(name):
    with torch.device("meta"):  # 120 million parameters in the classifier
        plain = build_model(name, num_classes=10)
        small, kept = sliced(plain, "between", 0.5)
        hand = reference_network(architecture_of(plain), kept)
    shapes = [tensor.shape for tensor in small.state_dict().values()]
    assert [tensor.shape for tensor in hand.state_dict().values()] == shapes


@pytest.mark.parametrize("position", ["before", "after"])
def test_a_shape_that_needs_index_operations_is_not_built(position):
    plain = build_model("resnet8", num_classes=10)
    assert reference_network(architecture_of(plain), sliced(plain, position, 0.5)[1]) is None


def test_a_site_without_any_channel_and_other_families_are_not_built():
    plain = build_model("resnet8", num_classes=10)
    assert reference_network(architecture_of(plain), {"layer1.0.between": []}) is None
    with torch.device("meta"):
        densenet = build_model("densenet121", num_classes=10)
    assert isinstance(densenet, torchvision.models.DenseNet)
    assert reference_network(architecture_of(densenet), {}) is None
