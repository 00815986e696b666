"""Attaching gates: on every family, once, without changing what the open network computes."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from unit_helpers import gated_resnet, images, mask_closing, shaken

from dist_prune import UserError, attach_gates, build_model, gate_means, masked
from dist_prune.gates.gate import Gate
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.wrappers import GatedBlock, GatedBranch, gated_modules, sites
from dist_prune.models.build import architecture_of
from dist_prune.pruning.residual import residual_blocks
from dist_prune.pruning.sites import Site

FAMILIES = {
    "cifar A": lambda: build_model("resnet14", num_classes=3, shortcut="A"),
    "cifar B": lambda: build_model("resnet14", num_classes=3, shortcut="B"),
    "torchvision BasicBlock": lambda: torchvision.models.ResNet(BasicBlock, [2, 1, 1, 1], num_classes=3),
    "torchvision Bottleneck": lambda: torchvision.models.ResNet(Bottleneck, [2, 1, 1, 1], num_classes=3),
    "timm BasicBlock": lambda: timm.models.ResNet(TimmBasicBlock, (2, 1, 1, 1), num_classes=3),
    "timm Bottleneck": lambda: timm.models.ResNet(TimmBottleneck, (2, 1, 1, 1), num_classes=3),
    "timm seresnet18": lambda: timm.create_model("seresnet18", num_classes=3),
    "timm resnet26d": lambda: timm.create_model("resnet26d", num_classes=3),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_residual_block_gets_a_gate_of_its_own_and_open_gates_change_nothing(family):
    plain = shaken(FAMILIES[family]()).eval()
    names, found = list(residual_blocks(plain)), find_sites(plain)
    x = images(2, 32)
    with torch.no_grad():
        expected = plain(x)
    parameters = dict(plain.named_parameters())

    gated = attach_gates(plain)
    assert gated is plain
    assert sites(gated) == found
    assert [(s.name, s.kind, s.units, s.may_be_empty) for s in found] == [(n, "layer", 1, True) for n in names]
    gates = [wrapper.gate for _, wrapper in gated_modules(gated)]
    assert len({id(gate) for gate in gates}) == len(names)
    with torch.no_grad():
        seen = gated(x)
    values, sizes, _ = gate_means(gated)
    assert values.tolist() == [1.0] * len(names)
    assert sizes == (1,) * len(names)
    assert (seen - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())

    ours = {id(p) for p in gated.parameters()}
    assert {id(p) for p in parameters.values()} <= ours, "weights are the very same objects"
    assert len(ours) - len(parameters) == 6 * len(names)


def test_open_gates_change_nothing_in_double_precision():
    plain = shaken(build_model("resnet20", num_classes=10, width=8)).double().eval()
    x = images(4, dtype=torch.float64)
    expected = plain(x)
    torch.testing.assert_close(attach_gates(copy.deepcopy(plain))(x), expected, rtol=1e-12, atol=1e-12)


def test_in_training_too_open_gates_change_neither_output_nor_gradient():
    plain = shaken(build_model("resnet8", num_classes=10, width=8)).double().train()
    twin = copy.deepcopy(plain)
    gated = attach_gates(plain)
    x = images(8, dtype=torch.float64)
    gated(x).square().sum().backward()
    assert gate_means(gated).values.min() == 1
    twin(x).square().sum().backward()
    ours = {name.replace(".inner.", "."): p.grad for name, p in gated.named_parameters()}
    for name, parameter in twin.named_parameters():
        if name.startswith(("layer3", "fc")):  # further back the gates' own gradient is added
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-11)


def test_a_gate_reads_the_blocks_input_and_gates_its_branch():
    gated = gated_resnet(8, dtype=torch.float64)
    block = gated.layer2[0]
    with torch.no_grad():
        x = gated.layer1(gated.relu(gated.bn1(gated.conv1(images(32, dtype=torch.float64)))))
        decisions = copy.deepcopy(block.gate)(x)[2]
        out = block(x)
        opened, closed = block.inner(x), block.inner.downsample(x).relu()
    assert 0 < decisions.mean() < 1
    torch.testing.assert_close(out, torch.where(decisions.view(-1, 1, 1, 1) > 0, opened, closed))


OTHERS = {
    "mobilenet": lambda: torchvision.models.MobileNetV2(3, 0.25),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=3),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3),
}


@pytest.mark.parametrize("family", OTHERS)
def test_open_gates_on_branches_of_other_families_change_nothing_and_the_loss_reaches_them(family):
    plain = shaken(OTHERS[family]()).double().eval()
    gated, x = attach_gates(copy.deepcopy(plain), open_bias=0.5), images(4, 32, dtype=torch.float64)
    assert {type(wrapper) for _, wrapper in gated_modules(gated)} == {GatedBranch}
    assert [wrapper.site for _, wrapper in gated_modules(gated)] == list(find_sites(plain))
    torch.testing.assert_close(gated(x), plain(x), rtol=1e-11, atol=1e-11)
    gated.train()(x).square().sum().backward()
    if family != "vit":  # whose first head is zero
        assert all(wrapper.gate.last.bias.grad.any() for _, wrapper in gated_modules(gated))


@pytest.mark.parametrize("inner", [nn.Conv2d(8, 8, 1), nn.MultiheadAttention(8, 2, batch_first=True)])
def test_a_branch_is_what_its_module_returns_times_the_decisions(inner):
    class Says(Gate):
        def forward(self, x):
            return x, x, decisions

    decisions = torch.tensor([[1.0], [0.0], [1.0]], requires_grad=True)
    wrapper = GatedBranch(inner, Says(8), Site("s", "layer", 1))
    if isinstance(inner, nn.Conv2d):
        x = torch.randn(3, 8, 4, 4)
        seen, expected = wrapper(x), inner(x) * decisions[:, :, None, None]
    else:
        x = torch.randn(3, 5, 8)
        seen, weights = wrapper(x, x, x, need_weights=False)
        expected = inner(x, x, x)[0] * decisions[:, :, None]
        assert weights is None
    torch.testing.assert_close(seen, expected)
    ours, theirs = (torch.autograd.grad(out.square().sum(), decisions)[0] for out in (seen, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", ["cifar B", "torchvision Bottleneck", "timm Bottleneck"])
def test_gates_follow_the_models_dtype_and_the_blocks_width(family):
    gated = attach_gates(FAMILIES[family]().double(), hidden=5)
    for _, wrapper in gated_modules(gated):
        assert isinstance(wrapper.gate, Gate)
        assert {tensor.dtype for tensor in wrapper.gate.state_dict().values()} <= {torch.float64, torch.long}
        assert wrapper.gate.body[0].in_features == wrapper.inner.conv1.in_channels
        assert wrapper.gate.body[0].out_features == 5


def test_the_loss_reaches_every_gate_and_every_weight():
    gated = attach_gates(shaken(build_model("resnet14", num_classes=10, width=8)), open_bias=0.1).train()
    gated(images(32)).square().sum().backward()
    without = [n for n, p in gated.named_parameters() if p.grad is None or not p.grad.any()]
    # What comes before a batch norm in training cannot shift its output: these biases have no effect.
    assert [name for name in without if not name.endswith("gate.body.0.bias")] == []


def test_gates_are_attached_once():
    gated = attach_gates(build_model("resnet8", num_classes=10))
    with pytest.raises(UserError, match="gates already"):
        attach_gates(gated)
    assert sum(isinstance(m, GatedBlock) for m in gated.modules()) == 3


def test_a_masked_network_counts_as_gated():
    gated = attach_gates(build_model("resnet8", num_classes=10))
    with pytest.raises(UserError, match="gates already"):
        attach_gates(masked(gated, mask_closing(gated, [])))


def test_a_model_without_residual_blocks_is_refused():
    with pytest.raises(UserError, match="Sequential has no residual layer"):
        attach_gates(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))


@pytest.mark.parametrize("make", [lambda: BasicBlock(4, 4), lambda: InvertedResidual(4, 4, 1, 6)])
def test_a_model_that_is_itself_a_block_has_channels_but_no_layers(make):
    with pytest.raises(UserError):
        attach_gates(make(), "layer")
    gated = attach_gates(make(), "channel")
    assert [site.units for site in sites(gated)] == [gated.get_submodule(sites(gated)[0].name).out_channels]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [({"kind": "layers"}, "'layers'.*did you mean 'layer'"), ({"head": "st"}, "'st'.*did you mean 'ste'")],
)
def test_unknown_kinds_and_heads_are_refused_with_the_nearest(arguments, hint):
    model = build_model("resnet8", num_classes=10)
    with pytest.raises(UserError, match=hint):
        attach_gates(model, **arguments)
    assert list(gated_modules(model)) == []


def test_how_the_plain_network_was_built_is_remembered():
    with torch.device("meta"):
        stock = torchvision.models.resnet18(num_classes=3)
    plain = architecture_of(stock)
    assert plain is not None
    assert architecture_of(attach_gates(stock)) == plain


def test_a_gated_network_saves_and_loads_its_weights():
    gated, other = gated_resnet(8), attach_gates(build_model("resnet8", num_classes=10, width=8)).eval()
    other.load_state_dict(gated.state_dict())
    x = images()
    assert torch.equal(other(x), gated(x))
