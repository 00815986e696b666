"""MACs are fvcore's count in eval mode, and each site's share of them."""

import pytest
import torch
from torch import nn
from unit_helpers import shaken

from dist_prune import build_model
from dist_prune.measure import Costs, count_macs, count_parameters, unit_costs


def test_macs_of_single_layers_are_those_by_hand():
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 6)) == 8 * 3 * 9 * 60
    assert count_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 9, 9)) == 8 * 2 * 9 * 25
    assert count_macs(nn.BatchNorm2d(4), (4, 5, 5)) == 2 * 4 * 25
    assert count_macs(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2)) == 12 * 7
    assert count_macs(nn.ReLU(), (4, 5, 5)) == 0


def test_counting_leaves_the_model_as_it_is():
    model = build_model("resnet8", num_classes=10, width=4).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_macs(model, (3, 8, 8))
    unit_costs(model, (3, 8, 8))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_block_costs_its_two_convolutions_and_norms():
    costs = unit_costs(build_model("resnet8", num_classes=10, width=4), (3, 8, 8))
    assert costs.per_unit == {
        "layer1.0": 2 * (4 * 4 * 9 * 64) + 2 * (2 * 4 * 64),
        "layer2.0": 8 * 4 * 9 * 16 + 8 * 8 * 9 * 16 + 2 * (2 * 8 * 16),
        "layer3.0": 16 * 8 * 9 * 4 + 16 * 16 * 9 * 4 + 2 * (2 * 16 * 4),
    }
    stem = 4 * 3 * 9 * 64 + 2 * 4 * 64
    shortcuts = 8 * 4 * 16 + 2 * 8 * 16 + 16 * 8 * 4 + 2 * 16 * 4
    assert costs.fixed == pytest.approx(stem + shortcuts + 16 * 4 + 160, abs=16 * 4)  # fvcore's pooling


def test_squeeze_and_excitation_belongs_to_the_branch():
    model = shaken(build_model("timm/seresnet18", num_classes=10))
    costs = unit_costs(model, (3, 32, 32))
    without = unit_costs(build_model("timm/resnet18", num_classes=10), (3, 32, 32))
    assert list(costs.per_unit) == list(without.per_unit)
    assert all(costs.per_unit[name] > without.per_unit[name] for name in costs.per_unit)
    assert costs.fixed == without.fixed


def test_masks_are_priced_by_what_they_close():
    costs = Costs(dense=100, per_unit={"a": 20, "b": 30}, parameters=5)
    assert costs.fixed == 50
    assert costs.of({}) == costs.of({"a": (0,), "b": (0,)}) == 100
    assert costs.of({"a": ()}) == 80
    assert costs.of({"a": (), "b": ()}) == costs.fixed


def test_parameters_count_trainable_or_not():
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    assert count_parameters(model) == 16
