"""Channel gates: maps times decisions in front of a module or behind it, and how they are attached."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import MobileNetV2
from unit_helpers import images, maps, same, shaken, undecided

from dist_prune import UserError, attach_gates, build_model, gate_means, polarization
from dist_prune.gates.gate import Gate
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.wrappers import GatedBlock, GatedBranch, GatedChannels, gated_modules, sites
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.sites import Site

SHAPE = (12, 6, 4, 4)
FORMS = pytest.mark.parametrize(("dense_layers", "flatten"), [(1, False), (2, False), (1, True), (2, True)])


def wrapper(dense_layers: int, flatten: bool, behind: bool, position: str = "between") -> GatedChannels:
    """A convolution with a gate that disagrees about samples."""
    features = 6 * 16 if flatten else 6
    gate = Gate(features, 6, dense_layers=dense_layers, flatten=flatten, open_bias=None)
    inner = nn.Conv2d(6, 6, 3, padding=1)
    return GatedChannels(inner, gate, Site("s", "channel", 6, position=position, behind=behind))


def plain_decisions(gate: Gate, x: torch.Tensor) -> torch.Tensor:
    """Zeros and ones with the gradient of equation 5, from torch's own operations."""
    features = x.flatten(1) if gate.flatten else x.mean((2, 3))
    logits = gate.last(gate.body(features))
    surrogate = logits * (logits.detach().abs() <= 1)
    return (logits > 0).to(x.dtype) + surrogate - surrogate.detach()


def plain(wrapped: GatedChannels, x: torch.Tensor) -> torch.Tensor:
    if wrapped.site.behind:
        x = wrapped.inner(x)
        return x * plain_decisions(wrapped.gate, x)[:, :, None, None]
    return wrapped.inner(x * plain_decisions(wrapped.gate, x)[:, :, None, None])


def results(function, model: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    """The output and the gradients of the input and of every parameter."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = function(x)
    return [out, *torch.autograd.grad(out, [x, *model.parameters()], upstream)]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
@FORMS
def test_gated_channels_are_the_plain_product_in_output_and_gradient(dense_layers, flatten, behind, layout):
    ours = wrapper(dense_layers, flatten, behind).double().train()
    theirs, x, upstream = copy.deepcopy(ours), maps(SHAPE, layout), torch.randn(SHAPE, dtype=torch.float64)
    expected = results(lambda x: plain(theirs, x), theirs, x, upstream)
    same(results(ours, ours, x, upstream), expected, 1e-11)
    assert 0.1 < ours.gate.pop_decisions()[0].mean() < 0.9


@pytest.mark.parametrize("behind", [False, True])
@FORMS
def test_compiled_kernels_change_nothing_but_rounding(dense_layers, flatten, behind, compiled):
    ours = wrapper(dense_layers, flatten, behind).train().to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours).double()
    x, upstream = maps(SHAPE, "channels_last", torch.float32), torch.randn(SHAPE)
    seen = results(ours, ours, x, upstream.contiguous(memory_format=torch.channels_last))
    expected = results(lambda x: plain(theirs, x), theirs, x.double(), upstream.double())
    largest = max(their.abs().max().item() for their in expected)  # biases before a norm cancel out to zero
    for our, their in zip(seen, expected, strict=True):
        assert (our.double() - their).abs().max() <= 1e-5 * largest


@FORMS
def test_open_channels_behind_the_last_norm_may_be_added_to_in_place(dense_layers, flatten):
    """Residual blocks do ``out += shortcut``."""
    ours = wrapper(dense_layers, flatten, behind=True, position="after").double().train()
    nn.init.constant_(ours.gate.last.bias, 9.0)
    theirs, x, upstream = copy.deepcopy(ours), maps(SHAPE, "NCHW"), torch.randn(SHAPE, dtype=torch.float64)
    expected = results(lambda x: plain(theirs, x) + x, theirs, x, upstream)
    same(results(lambda x: ours(x).add_(x), ours, x, upstream), expected, 1e-11)
    assert ours.gate.pop_decisions()[0].min() == 1


@pytest.mark.parametrize("position", ["before", "between", "after"])
@pytest.mark.parametrize("flatten", [False, True])
def test_open_channel_gates_change_nothing_and_the_loss_reaches_all_of_them(position, flatten):
    plain_model = shaken(build_model("resnet14", num_classes=10, width=4)).double().train()
    options = {"flatten": flatten, "input_shape": (3, 16, 16), "open_bias": 0.5}
    gated = attach_gates(copy.deepcopy(plain_model), "channel", position=position, **options)
    x = images(8, dtype=torch.float64)
    out = gated(x)
    torch.testing.assert_close(out, plain_model(x), rtol=1e-11, atol=1e-11)
    means = gate_means(gated)
    assert means.values.tolist() == [1.0] * sum(means.sizes)
    assert means.sizes == tuple(site.units for site in find_sites(plain_model, "channel", position))
    (out.square().sum() + polarization(means)).backward()
    for name, module in gated_modules(gated):
        assert module.gate.flatten is flatten
        assert (module.gate.last.bias.grad != 0).all(), name


def test_wrappers_follow_from_the_sites():
    def kinds(model: nn.Module) -> set[type]:
        return {type(module) for _, module in gated_modules(model)}

    assert kinds(attach_gates(build_model("resnet8", num_classes=3))) == {GatedBlock}
    assert kinds(attach_gates(build_model("resnet8", num_classes=3), "channel")) == {GatedChannels}
    assert kinds(attach_gates(MobileNetV2(3, width_mult=0.25))) == {GatedBranch}


@pytest.mark.parametrize("dense_layers", [1, 2])
def test_every_channel_has_a_decision_of_its_own_for_every_sample(dense_layers):
    gated = attach_gates(build_model("resnet8", num_classes=10, width=4), "channel", dense_layers=dense_layers)
    gated = undecided(gated)
    gated(images(32))
    for (_, module), site in zip(gated_modules(gated), sites(gated), strict=True):
        decisions, logits = module.gate.pop_decisions()
        assert decisions.shape == logits.shape == (32, site.units)
        assert 0.2 < decisions.mean() < 0.8


def flattened_macs(model: nn.Module, shapes: list[tuple[int, ...]], outputs: int) -> float:
    return sum(torch.Size(shape).numel() * outputs for shape in shapes) / count_macs(model, (3, 32, 32))


@pytest.mark.parametrize(("hidden", "flattens"), [(1, True), (64, False)])
def test_maps_are_flattened_by_default_where_all_gates_together_cost_two_percent_at_most(hidden, flattens):
    model = build_model("resnet8", num_classes=10)
    share = flattened_macs(model, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], hidden)
    assert (share <= 0.02) is flattens
    gated = attach_gates(model, "channel", hidden=hidden, input_shape=(3, 32, 32))
    assert {module.gate.flatten for _, module in gated_modules(gated)} == {flattens}


def test_the_limit_of_flattening_is_two_percent_of_the_networks_macs():
    """Hidden widths on both sides of it; each unit of width costs the same."""
    model = build_model("resnet8", num_classes=10)
    largest = int(0.02 / flattened_macs(model, [(16, 32, 32), (32, 16, 16), (64, 8, 8)], 1))
    for hidden in (largest, largest + 1):
        gated = attach_gates(copy.deepcopy(model), "channel", hidden=hidden, input_shape=(3, 32, 32))
        assert {module.gate.flatten for _, module in gated_modules(gated)} == {hidden == largest}


def test_flattening_can_be_forced_and_forbidden_and_needs_to_know_the_image():
    model = build_model("resnet8", num_classes=10)
    for flatten in (True, False):
        gated = attach_gates(copy.deepcopy(model), "channel", hidden=8, flatten=flatten, input_shape=(3, 16, 16))
        assert {module.gate.flatten for _, module in gated_modules(gated)} == {flatten}
    widths = [m.gate.body[0].in_features for _, m in gated_modules(attach_gates(model, "channel"))]
    assert widths == [16, 32, 64]
    with pytest.raises(UserError, match="input_shape"):
        attach_gates(build_model("resnet8", num_classes=10), "channel", flatten=True)


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_attaching_gates_leaves_every_modules_mode_as_it_was(kind):
    """Owners freeze norms in eval mode; to learn the shapes of maps the model runs once."""
    model = build_model("resnet8", num_classes=10).train()
    model.layer1.eval()
    statistics = model.bn1.running_mean.clone()
    modes = [(name, module, module.training) for name, module in model.named_modules()]
    attach_gates(model, kind, input_shape=(3, 16, 16))
    assert torch.equal(model.bn1.running_mean, statistics)
    assert [name for name, module, training in modes if module.training != training] == []


def test_unknown_positions_and_families_without_them_are_refused():
    with pytest.raises(UserError, match=r"'beside'.*before"):
        attach_gates(build_model("resnet8", num_classes=10), "channel", position="beside")
    with pytest.raises(UserError, match=r"MobileNetV2.*'before'.*'between'"):
        attach_gates(MobileNetV2(3, width_mult=0.25), "channel", position="before")
