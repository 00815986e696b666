"""Collapse in every family: the sliced network computes what the masked one does and costs what was predicted."""

import copy
import itertools

import pytest
import torch
from timm.models.resnet import BasicBlock as TimmBasicBlock
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import nn
from torchvision.models import DenseNet, MobileNetV2, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.googlenet import BasicConv2d, Inception
from torchvision.models.inception import InceptionA, InceptionB, InceptionC, InceptionD
from torchvision.models.resnet import BasicBlock, Bottleneck
from unit_helpers import half_resnet, images, relative_difference, shaken, small_vgg

from dist_prune import attach_gates, build_model, collapse, load_sliced, masked, save_sliced
from dist_prune.gates.gate import Gate
from dist_prune.gates.insertion import find_sites
from dist_prune.gates.wrappers import Gated, sites
from dist_prune.measure.macs import count_macs
from dist_prune.pruning.costs import unit_costs
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.replacement_blocks import AddToChannels, ConstantMap, SelectChannels, Shift


def timm_resnet(block: type[nn.Module], **options) -> nn.Module:
    return TimmResNet(block, (2, 1, 1, 1), num_classes=10, channels=(8, 12, 12, 12), **options)


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zero, as torchvision makes it
    return model


def convnext() -> nn.Module:
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return ConvNeXt(stages, layer_scale=0.5, num_classes=10)


def mobilenet() -> nn.Module:
    stages = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return MobileNetV2(10, width_mult=0.25, inverted_residual_setting=stages)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def googlenet_part() -> nn.Module:
    stem = BasicConv2d(3, 8, kernel_size=3, stride=2)
    branches = [Inception(channels, 8, 8, 12, 4, 8, 6) for channels in (8, 34)]
    return nn.Sequential(stem, *branches, *head(34))


def inception_part() -> nn.Module:
    """A block of each kind, whose branches have few channels where their class lets one choose."""
    stem = BasicConv2d(3, 8, kernel_size=3)
    blocks = [
        InceptionA(8, 4), InceptionB(228),
        InceptionC(708, 8), InceptionD(768),
    ]  # fmt: skip
    return nn.Sequential(stem, *blocks, *head(1280))


FAMILIES = {
    "cifar A": (lambda: build_model("resnet14", num_classes=10, shortcut="A", width=4), 16),
    "cifar B": (lambda: build_model("resnet14", num_classes=10, shortcut="B", width=4), 16),
    "torchvision basic": (lambda: half_resnet(BasicBlock), 32),
    "torchvision bottleneck": (lambda: half_resnet(Bottleneck), 32),
    "timm SiLU": (lambda: timm_resnet(TimmBasicBlock, act_layer=nn.SiLU), 32),
    "timm bottleneck": (lambda: timm_resnet(TimmBottleneck, stem_type="deep", avg_down=True), 32),
    "vgg": (lambda: small_vgg(batch_norm=False), 32),
    "vgg_bn": (lambda: small_vgg(batch_norm=True), 32),
    "mobilenet": (mobilenet, 32),
    "densenet": (lambda: DenseNet(4, (2, 3), 8, num_classes=10), 32),
    "googlenet": (googlenet_part, 32),
    "inception": (inception_part, 32),
    "convnext": (convnext, 32),
    "vit": (vit, 32),
}
RESNETS = [family for family in FAMILIES if family.startswith(("cifar", "torchvision", "timm"))]
CHAINS = ["vgg", "vgg_bn", "mobilenet", "densenet", "googlenet", "inception"]
CASES = [
    *itertools.product(RESNETS, ["before", "between", "after"]),
    *((family, "between") for family in CHAINS),
    *((family, "layer") for family in ("mobilenet", "convnext", "vit")),
]


def random_kept(found, share: float = 0.5) -> dict[str, list[int]]:
    """A part of the units of every site, one at least."""
    kept = {s.name: [u for u in range(s.units) if torch.rand(()) < share] for s in found}
    return {s.name: kept[s.name] or [s.units // 2] for s in found}


def without(kept, emptied):
    return {s: [] if s in emptied else units for s, units in kept.items()}


def masks_of(found) -> dict[str, UnitMask]:
    may = [site.name for site in found if site.may_be_empty]
    masks = {"full": {s.name: range(s.units) for s in found}, "random": random_kept(found)}
    if found[0].kind == "layer":
        masks["random"] = without(masks["full"], may[::2])
    if may:
        masks["empty"] = without(random_kept(found), may)
        masks["partly empty"] = without(random_kept(found, 0.8), may[1::2])
    return {name: UnitMask.of(kept, found) for name, kept in masks.items()}


class Case:
    """One family with gates at one kind of place, in float64 and fp32."""

    def __init__(self, family: str, place: str) -> None:
        torch.manual_seed(0)
        make, self.size = FAMILIES[family]
        self.place = place
        options = {"kind": "layer"} if place == "layer" else {"kind": "channel", "position": place}
        self.plain = shaken(make()).eval()
        self.sites = find_sites(self.plain, **options)
        self.gated = attach_gates(copy.deepcopy(self.plain), **options).eval()
        self.masks = masks_of(self.sites)
        self.sliced = {name: collapse(self.gated, mask) for name, mask in self.masks.items()}
        self.costs = unit_costs(self.plain, (3, self.size, self.size), self.sites)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request):
    return Case(*request.param)


def test_gates_stand_at_the_sites_that_were_found(case):
    assert sites(case.gated) == case.sites


@torch.no_grad()
def test_masked_output_equals_sliced_output(case):
    seen, x = {}, images(2, case.size)
    gated = copy.deepcopy(case.gated).double()
    for name, mask in case.masks.items():
        expected, seen[name] = masked(gated, mask)(x.double()), collapse(gated, mask)(x.double())
        assert relative_difference(seen[name], expected) <= 1e-9, name
        expected, single = masked(case.gated, mask)(x), case.sliced[name](x)
        assert (single - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item()), name
    full = seen.pop("full")  # the masks make a difference, or the comparison would say nothing
    assert all(relative_difference(other, full) > 1e-3 for other in seen.values())


def test_predicted_macs_are_those_counted_of_the_sliced_network(case):
    for name, mask in case.masks.items():
        counted = count_macs(case.sliced[name], (3, case.size, case.size))
        assert case.costs.of(mask.kept) == counted, name
        assert name == "full" or counted < case.costs.dense


def test_nothing_but_plain_modules_is_left(case):
    for name, small in case.sliced.items():
        assert not any(isinstance(module, Gate | Gated) for module in small.modules())
        if case.place in ("between", "layer"):
            assert not any(isinstance(module, SelectChannels | AddToChannels) for module in small.modules())
        assert (repr(small) == repr(case.plain)) == (name == "full")


CONSTANTS = [*itertools.product(RESNETS, ["before", "between"]), ("mobilenet", "between"), ("densenet", "between")]


@pytest.mark.parametrize(("family", "place"), CONSTANTS)
def test_closed_units_leave_constants_behind_that_the_output_needs(family, place):
    """The comparisons above would notice if these were dropped."""
    case = Case(family, place)
    small = collapse(case.gated, case.masks["random" if family == "densenet" else "empty"])
    bare, before = copy.deepcopy(small), dict(case.plain.named_parameters())
    found = 0
    for name, parameter in bare.named_parameters():
        owner = bare.get_submodule(name.rpartition(".")[0])
        folded = name.endswith("bias") and not torch.equal(parameter, before.get(name, parameter + 1))
        if isinstance(owner, Shift | ConstantMap) or (folded and not isinstance(owner, nn.BatchNorm2d)):
            parameter.data.copy_(before[name].data if name in before else torch.zeros_like(parameter))
            found += 1
    assert found >= len({site.block for site in case.sites if site.block})
    x = images(2, case.size)
    with torch.no_grad():
        assert relative_difference(bare(x), small(x)) > 1e-3


NAMED = {
    "resnet20": ({"width": 4}, 16),
    "resnet18": ({}, 32),
    "mobilenet_v2": ({"width_mult": 0.25}, 32),
    "densenet121": ({}, 32),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 32),
    "inception_v3": ({"aux_logits": False, "init_weights": False}, 75),
}
SAVED = [*itertools.product(["resnet20", "resnet18"], ["before", "between", "after"])]
SAVED += [*((family, "between") for family in ("mobilenet_v2", "densenet121", "googlenet", "inception_v3"))]
SAVED += [("mobilenet_v2", "layer")]


@pytest.mark.parametrize(("name", "place"), SAVED)
def test_a_sliced_network_comes_back_from_its_checkpoint(name, place, tmp_path):
    arguments, size = NAMED[name]
    plain = shaken(build_model(name, num_classes=10, **arguments)).eval()
    options = {"kind": "layer"} if place == "layer" else {"kind": "channel", "position": place}
    gated = attach_gates(plain, **options).eval()
    mask = masks_of(sites(gated))["random" if name in ("googlenet", "inception_v3") else "partly empty"]
    small = collapse(gated, mask)
    back = load_sliced(save_sliced(small, tmp_path / "sliced", input_shape=(3, size, size)))
    assert repr(back) == repr(small)
    assert not back.training
    ours, theirs = small.state_dict(), back.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    x = images(2, size)
    with torch.no_grad():
        torch.testing.assert_close(back(x), small(x), rtol=1e-5, atol=1e-5)
        assert relative_difference(back(x), masked(gated, mask)(x)) <= 2e-5
