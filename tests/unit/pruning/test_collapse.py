"""Collapse: the sliced network computes what the masked one does, costs what was predicted, and trains."""

import copy

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock, Bottleneck
from unit_helpers import gated_resnet, half_resnet, images, mask_closing, random_mask, relative_difference, shaken

from dist_prune import UserError, attach_gates, build_model, collapse, masked
from dist_prune.gates.consensus import slice_gated_network
from dist_prune.gates.gate import Gate
from dist_prune.gates.insertion import find_sites, strip_gates
from dist_prune.gates.wrappers import Gated, gated_modules, sites
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.residual import residual_blocks
from dist_prune.pruning.slicing import TensorSlice, remove_units, slice_network

# Small stand-ins; the whole ResNet-56 and ResNet-50 have a test each.
PLAIN = {
    "CIFAR, shortcut A": lambda: build_model("resnet20", num_classes=10, shortcut="A", width=4),
    "CIFAR, shortcut B": lambda: build_model("resnet20", num_classes=10, shortcut="B", width=4),
    "torchvision, basic": lambda: half_resnet(BasicBlock, (2, 2)),
    "torchvision, bottleneck": lambda: half_resnet(Bottleneck, (2, 2)),
    "timm, squeeze and excitation": lambda: timm_resnet(TimmBasicBlock, block_args={"attn_layer": "se"}),
    "timm, averaging shortcut": lambda: timm_resnet(TimmBottleneck, stem_type="deep", avg_down=True),
    "timm, SiLU": lambda: timm_resnet(TimmBasicBlock, act_layer=nn.SiLU),
}


def timm_resnet(block: type[nn.Module], **options) -> nn.Module:
    return TimmResNet(block, (2, 1, 2, 1), num_classes=10, channels=(8, 12, 12, 16), **options)


def changes_shape(block: nn.Module) -> bool:
    return block.downsample is not None


MASKS = {
    "all open": lambda gated: mask_closing(gated, []),
    "all closed": lambda gated: mask_closing(gated, [site.name for site in sites(gated)]),
    "downsampling closed": lambda gated: mask_closing(
        gated, [name for name, wrapper in gated_modules(gated) if changes_shape(wrapper.inner)]
    ),
    "others closed": lambda gated: mask_closing(
        gated, [name for name, wrapper in gated_modules(gated) if not changes_shape(wrapper.inner)]
    ),
    **{f"random {seed}": lambda gated, seed=seed: random_mask(gated, seed) for seed in range(3)},
}


@pytest.fixture(scope="module", params=PLAIN)
def gated(request):
    torch.manual_seed(0)
    return attach_gates(shaken(PLAIN[request.param]())).eval()


def test_masked_output_equals_sliced_output_in_fp32(gated):
    x = images(2, 32)
    for name, make in MASKS.items():
        mask = make(gated)
        with torch.no_grad():
            expected, seen = masked(gated, mask)(x), collapse(gated, mask)(x)
        assert (seen - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item()), name


def test_masked_output_equals_sliced_output_in_float64(gated):
    wide = copy.deepcopy(gated).double()
    x = images(2, 16, dtype=torch.float64)
    outputs = []
    for name, make in MASKS.items():
        mask = make(wide)
        with torch.no_grad():
            expected, seen = masked(wide, mask)(x), collapse(wide, mask)(x)
        assert relative_difference(seen, expected) <= 1e-9, name
        outputs.append(seen)
    # The masks make a difference, or the comparison would say nothing.
    assert all(relative_difference(other, outputs[0]) > 1e-3 for other in outputs[1:])


@pytest.mark.parametrize(
    "build", [lambda: build_model("resnet56", num_classes=10, shortcut="A"), lambda: resnet50(num_classes=10)]
)
def test_whole_networks_are_sliced_exactly_and_cost_what_was_predicted(build):
    gated = attach_gates(shaken(build())).eval()
    mask, x = random_mask(gated, 0), images(2, 32)
    small = collapse(gated, mask)
    with torch.no_grad():
        expected, seen = masked(gated, mask)(x), small(x)
    assert (seen - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    plain = strip_gates(gated)
    assert unit_costs(plain, (3, 32, 32), find_sites(plain)).of(mask.kept) == count_macs(small, (3, 32, 32))


def test_a_mask_by_itself_is_the_gated_network_with_these_decisions():
    """An independent view of ``masked``: the blocks' outputs composed by a reference network."""
    gated = gated_resnet(14, dtype=torch.float64)
    mask = mask_closing(gated, ["layer1.0", "layer2.0", "layer3.1"])
    x = images(3, dtype=torch.float64)
    with torch.no_grad():
        y = gated.relu(gated.bn1(gated.conv1(x)))
        for name, wrapper in gated_modules(gated):
            block = wrapper.inner
            shortcut = y if block.downsample is None else block.downsample(y)
            y = block(y) if mask.kept[name] else shortcut.clamp(min=0)
        expected = gated.fc(gated.avgpool(y).flatten(1))
        torch.testing.assert_close(masked(gated, mask)(x), expected, rtol=1e-12, atol=1e-12)


def test_predicted_macs_are_fvcores_count_of_the_sliced_network(gated):
    shape = (3, 32, 32)
    plain = strip_gates(copy.deepcopy(gated))
    costs = unit_costs(plain, shape, find_sites(plain))
    for name, make in MASKS.items():
        mask = make(gated)
        counter = FlopCountAnalysis(collapse(gated, mask), torch.zeros(1, *shape))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert costs.of(mask.kept) == counter.total(), name
    branches = sum(module.macs for module in costs.modules)
    assert costs.of(MASKS["all closed"](gated).kept) == costs.dense - branches
    assert costs.of({}) == costs.dense


def test_nothing_of_a_gate_is_left(gated):
    for make in MASKS.values():
        small = collapse(gated, make(gated))
        assert not any(isinstance(m, (Gate, Gated)) for m in small.modules())
        assert not any("gate" in name for name in small.state_dict())
        assert not small.training


def test_the_model_that_was_collapsed_stays_as_it_was():
    gated = gated_resnet(14).train()
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    structure, attributes = repr(gated), set(vars(gated))
    small, fixed = collapse(gated, random_mask(gated, 1)), masked(gated, random_mask(gated, 1))
    for parameter in [*small.parameters(), *fixed.parameters()]:
        parameter.data.zero_()
    assert repr(gated) == structure
    assert set(vars(gated)) == attributes
    assert gated.training
    for name, tensor in gated.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_masked_fixes_every_gate_and_refuses_a_foreign_mask():
    gated = gated_resnet(14)
    fixed = masked(gated, random_mask(gated, 0))
    assert all(wrapper.gate.frozen for _, wrapper in gated_modules(fixed))
    assert not any(wrapper.gate.frozen for _, wrapper in gated_modules(gated))
    other = gated_resnet(20)
    for function in (masked, collapse):
        with pytest.raises(UserError, match=r"layer\d\.2"):
            function(gated, random_mask(other, 0))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_sliced_and_masked_are_equal(name, training):
    gated = gated_resnet(20, dtype=torch.float64)
    mask = MASKS[name](gated)
    fixed, small = masked(gated, mask).train(training), collapse(gated, mask).train(training)
    mine, theirs = images(6, dtype=torch.float64).requires_grad_(), None
    theirs = mine.detach().clone().requires_grad_()
    small(mine).square().sum().backward()
    fixed(theirs).square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-9)
    expected = {n.replace(".inner.", "."): p.grad for n, p in fixed.named_parameters()}
    origins = {n: n for n, _ in small.named_parameters()}
    for closed in (n for n, units in mask.kept.items() if not units):  # its shortcut became child 0
        for n in origins:
            if n.startswith(closed + ".0."):
                origins[n] = n.replace(closed + ".0.", closed + ".downsample.")
    for n, parameter in small.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[origins[n]], rtol=1e-8, atol=1e-9)


def test_a_sliced_network_trains(gated):
    x, labels = images(4, 32), torch.arange(4)
    for make in MASKS.values():
        small = collapse(gated, make(gated)).train()
        optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
        losses = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(small(x), labels)
            loss.backward()
            assert all(p.grad is not None for p in small.parameters())
            optimizer.step()
            losses.append(loss)
        assert all(loss.isfinite() for loss in losses)


def test_origins_name_the_tensor_of_the_gated_network_that_each_tensor_was(gated):
    old = gated.state_dict(keep_vars=True)
    for make in MASKS.values():
        small, origins = slice_gated_network(gated, make(gated).kept)
        new = small.state_dict(keep_vars=True)
        assert origins.keys() == new.keys()
        for here, there in origins.items():
            assert torch.equal(new[here], old[there.name]), (here, there)
            assert torch.equal(new[here], there.take(old[there.name])), (here, there)
        names = {there.name for there in origins.values()}
        assert len(names) == len(origins)
        assert not any(".gate." in name for name in names)


def test_cut_slices_a_plain_network_too():
    plain = shaken(build_model("resnet14", num_classes=10, width=8)).double().eval()
    gated = attach_gates(copy.deepcopy(plain))
    mask = mask_closing(gated, ["layer1.1", "layer2.0"])
    small, origins = slice_network(plain, mask.kept)
    x = images(dtype=torch.float64)
    assert torch.equal(small(x), collapse(gated, mask)(x))
    assert origins["layer2.0.0.0.weight"] == TensorSlice("layer2.0.downsample.0.weight")
    assert origins["layer2.1.conv1.weight"] == TensorSlice("layer2.1.conv1.weight")


def test_removing_units_keeps_the_very_parameters_that_stay():
    plain = build_model("resnet14", num_classes=10, width=8)
    weight = plain.layer3[1].conv2.weight
    projection = plain.layer3[0].downsample[0].weight
    remove_units(plain, {"layer3.0": (), "layer1.1": ()})
    assert plain.layer3[1].conv2.weight is weight
    assert plain.layer3[0][0][0].weight is projection


def test_a_closed_block_that_keeps_its_shape_is_gone_and_costs_nothing():
    plain = build_model("resnet14", num_classes=10, width=8)
    remove_units(plain, {"layer1.1": ()})
    assert isinstance(plain.layer1[1], nn.Identity)


def test_sites_that_the_network_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"layer9\.0"):
        remove_units(build_model("resnet8", num_classes=10), {"layer9.0": ()})


def test_a_network_may_be_collapsed_again():
    """Phases of a method, or a user who attaches gates to a sliced network."""
    first = gated_resnet(14, dtype=torch.float64)
    small = collapse(first, mask_closing(first, ["layer1.0", "layer2.0"]))
    assert set(residual_blocks(small)) == {"layer1.1", "layer2.1", "layer3.0", "layer3.1"}
    again = attach_gates(small).eval()
    mask = mask_closing(again, ["layer1.1", "layer3.0"])
    x = images(dtype=torch.float64)
    with torch.no_grad():
        assert relative_difference(collapse(again, mask)(x), masked(again, mask)(x)) <= 1e-9


def test_consecutive_closed_blocks_leave_one_activation():
    gated = gated_resnet(20, dtype=torch.float64)
    mask = UnitMask.of({site.name: () for site in sites(gated)}, sites(gated))
    small = collapse(gated, mask)
    left = [type(module).__name__ for stage in (small.layer1, small.layer2, small.layer3) for module in stage]
    assert left == ["ReLU", "Identity", "Identity"] + 2 * ["Sequential", "Identity", "Identity"]
