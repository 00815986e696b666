"""CIFAR ResNets: depths, published sizes, MACs as the paper counts them, and the shortcuts of option A."""

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from unit_helpers import shaken

from dist_prune.measure.macs import count_macs
from dist_prune.models.cifar_resnet import CifarResNet, PadShortcut
from dist_prune.pruning.costs import Costs, unit_costs
from dist_prune.pruning.families import layer_sites
from dist_prune.pruning.residual import residual_blocks
from dist_prune.pruning.slicing import slice_network

CIFAR = (3, 32, 32)


@lru_cache
def costs_of(depth: int, shortcut: str) -> Costs:
    plain = CifarResNet(depth, shortcut=shortcut)
    return unit_costs(plain, CIFAR, layer_sites(plain))


def fvcore_count(model: nn.Module) -> int:
    analysis = FlopCountAnalysis(model.eval(), torch.zeros(1, *CIFAR))
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_depth_counts_the_layers_with_weights(depth):
    model = CifarResNet(depth)
    on_the_path = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "downsample" not in name
    ]
    assert len(on_the_path) == depth
    assert len(residual_blocks(model)) == (depth - 2) // 2


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 18, 21, 50 + 1, 100])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 2.*{depth}"):
        CifarResNet(depth)


def test_unknown_shortcut_option_is_refused():
    with pytest.raises(ValueError, match="'C'"):
        CifarResNet(20, shortcut="C")


@pytest.mark.parametrize(
    ("depth", "shortcut", "millions"),
    [(20, "A", 40.93), (56, "A", 126.55), (110, "A", 254.99)]
    + [(20, "B", 41.22), (56, "B", 126.84), (110, "B", 255.28)],
)
def test_dense_macs_are_those_that_fvcore_gives_for_the_papers_networks(depth, shortcut, millions):
    assert round(costs_of(depth, shortcut).dense / 1e6, 2) == millions


def test_count_macs_is_fvcores_count():
    model = CifarResNet(20, shortcut="A")
    assert count_macs(model, CIFAR) == fvcore_count(model) == costs_of(20, "A").dense


def test_macs_of_convolutions_and_linear_are_half_of_torchs_flops():
    model = CifarResNet(20).eval()
    without_norms = CifarResNet(20)
    for name, module in list(without_norms.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            without_norms.set_submodule(name, nn.Identity())
    without_norms.avgpool = nn.Identity()
    without_norms.fc = nn.Linear(64 * 8 * 8, 10)  # what no pooling leaves
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *CIFAR))
    fc_on_every_pixel = 64 * 8 * 8 * 10 - 64 * 10
    assert counter.get_total_flops() // 2 == count_macs(without_norms, CIFAR) - fc_on_every_pixel


def papers_mask(plain: nn.Module) -> dict[str, tuple[int, ...]]:
    """29 of 54 layers open; of the 25 closed ones 8 in each stage keep the resolution, and one halves it."""
    closed = {f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(2, 18, 2)} | {"layer2.0"}
    assert len(closed) == 25
    assert closed <= set(residual_blocks(plain))
    return {name: () if name in closed else (0,) for name in residual_blocks(plain)}


def test_resnet110_with_29_of_54_layers_open_costs_what_the_paper_says():
    plain = CifarResNet(110)
    kept = papers_mask(plain)
    predicted = costs_of(110, "B").of(kept)
    assert 137.4e6 < predicted < 138.0e6  # Table 2: 137.7 M
    assert predicted == fvcore_count(slice_network(plain, kept)[0])


@pytest.mark.parametrize(
    ("depth", "millions", "digits"), [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1)]
)
def test_parameter_counts_are_the_published_ones(depth, millions, digits):
    """He et al., Table 6, with parameter-free shortcuts."""
    count = sum(p.numel() for p in CifarResNet(depth, shortcut="A").parameters())
    assert round(count / 1e6, digits) == millions


def test_option_a_has_no_parameters_in_its_shortcuts_and_option_b_only_two_projections():
    of_a = dict(CifarResNet(20, shortcut="A").named_parameters())
    of_b = dict(CifarResNet(20, shortcut="B").named_parameters())
    assert {name.rsplit(".", 2)[0] for name in of_b.keys() - of_a.keys()} == {
        "layer2.0.downsample",
        "layer3.0.downsample",
    }
    assert of_a.keys() < of_b.keys()


@pytest.mark.parametrize(("c_in", "c_out", "size"), [(16, 32, 8), (4, 8, 7), (3, 8, 5)])
def test_padding_shortcut_is_a_strided_convolution_with_a_padded_identity(c_in, c_out, size):
    before = (c_out - c_in) // 2
    weight = torch.zeros(c_out, c_in, 1, 1)
    weight[before : before + c_in, :, 0, 0] = torch.eye(c_in)
    x = torch.randn(2, c_in, size, size)
    assert torch.equal(PadShortcut(c_in, c_out, 2)(x), F.conv2d(x, weight, stride=2))


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resolution_halves_twice_and_width_doubles_twice(shortcut):
    model = CifarResNet(14, num_classes=7, in_channels=1, shortcut=shortcut)
    x = model.relu(model.bn1(model.conv1(torch.randn(2, 1, 12, 12))))
    shapes = []
    for stage in (model.layer1, model.layer2, model.layer3):
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 12, 12), (32, 6, 6), (64, 3, 3)]
    assert model.fc(model.avgpool(x).flatten(1)).shape == (2, 7)


def test_block_is_relu_of_shortcut_plus_branch():
    block = shaken(CifarResNet(8, shortcut="A")).layer2[0].double().eval()
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    first = F.conv2d(x, block.conv1.weight, stride=2, padding=1)
    first = F.batch_norm(first, *stats(block.bn1)).clamp(min=0)
    second = F.batch_norm(F.conv2d(first, block.conv2.weight, padding=1), *stats(block.bn2))
    shortcut = torch.zeros_like(second)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), (shortcut + second).clamp(min=0), rtol=1e-12, atol=1e-12)


def stats(norm: nn.BatchNorm2d):
    return norm.running_mean, norm.running_var, norm.weight, norm.bias
