"""Residual blocks of known families are act(shortcut(x) + F(x)), computed from their own children."""

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from unit_helpers import shaken

from dist_prune.models.cifar_resnet import CifarResNet
from dist_prune.pruning.residual import residual_blocks, residual_form


def torchvision_blocks(block):
    """A ResNet of the family with one block that changes its input's shape and one that keeps it."""
    return torchvision.models.ResNet(block, [2, 2, 1, 1], num_classes=3)


def timm_blocks(block, **arguments):
    return timm.models.ResNet(block, (2, 2, 1, 1), num_classes=3, **arguments)


MODELS = {
    "cifar, option A": lambda: CifarResNet(14, shortcut="A"),
    "cifar, option B": lambda: CifarResNet(14, shortcut="B"),
    "torchvision BasicBlock": lambda: torchvision_blocks(BasicBlock),
    "torchvision Bottleneck": lambda: torchvision_blocks(Bottleneck),
    "timm BasicBlock": lambda: timm_blocks(TimmBasicBlock),
    "timm Bottleneck": lambda: timm_blocks(TimmBottleneck),
    "timm anti-aliased": lambda: timm_blocks(TimmBottleneck, aa_layer=nn.AvgPool2d),
    "timm other activation": lambda: timm_blocks(TimmBasicBlock, act_layer=nn.SiLU),
    "timm seresnet18": lambda: timm.create_model("seresnet18", num_classes=3),
    "timm resnet26d": lambda: timm.create_model("resnet26d", num_classes=3),
}


@pytest.mark.parametrize("family", MODELS)
def test_activation_of_shortcut_plus_branch_is_the_blocks_own_forward(family):
    blocks = residual_blocks(shaken(MODELS[family]()).double().eval())
    names = ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert set(names) <= blocks.keys()
    for block in map(blocks.get, names):
        form = residual_form(block)
        channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
        x = torch.randn(2, channels, 6, 6, dtype=torch.float64)
        with torch.no_grad():
            expected = block(x.clone())
            branch = form.branch(block, x.clone())
            shortcut = getattr(block, form.shortcut)
            kept = x if shortcut is None else shortcut(x)
            seen = getattr(block, form.activation)(kept + branch)
        assert branch.abs().max() > 0.1
        torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", MODELS)
def test_the_branch_leaves_its_input_as_it_is(family):
    block = next(iter(residual_blocks(shaken(MODELS[family]()).eval()).values()))
    channels = next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, channels, 6, 6)
    before = x.clone()
    with torch.no_grad():
        residual_form(block).branch(block, x)
    assert torch.equal(x, before)


def test_drop_path_belongs_to_the_branch():
    block = TimmBasicBlock(4, 4, drop_path=timm.layers.DropPath(0.9)).train()
    x = torch.randn(64, 4, 3, 3)
    branch = residual_form(block).branch(block, x)
    dropped = (branch.flatten(1) == 0).all(1).float().mean()
    assert 0.7 < dropped < 1.0


@pytest.mark.parametrize("family", [BasicBlock, Bottleneck, TimmBasicBlock, TimmBottleneck])
def test_a_subclass_counts_unless_it_has_its_own_forward(family):
    class Same(family):
        pass

    class Other(family):
        def forward(self, x):
            return super().forward(x) + 1

    arguments = 8, 8 // family.expansion
    assert residual_form(Same(*arguments)) == residual_form(family(*arguments)) is not None
    assert residual_form(Other(*arguments)) is None


@pytest.mark.parametrize("module", [nn.Conv2d(3, 3, 1), nn.Sequential(), nn.ReLU()], ids=lambda m: type(m).__name__)
def test_other_modules_have_no_form(module):
    assert residual_form(module) is None


def test_blocks_come_in_the_order_of_the_network():
    assert list(residual_blocks(CifarResNet(14))) == [f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1)]


def test_models_of_other_kinds_have_no_residual_blocks():
    with torch.device("meta"):
        assert residual_blocks(torchvision.models.vgg11()) == {}
