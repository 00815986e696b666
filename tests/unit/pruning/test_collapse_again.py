"""Networks that are not as they came from the library: collapsed before, or with other norms."""

import itertools
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d
from unit_helpers import images, relative_difference, shaken

from dist_prune import UserError, attach_gates, build_model, collapse, load_sliced, masked, save_sliced
from dist_prune.gates.wrappers import sites
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.slicing import slice_network

PLACES = ["layer", "before", "between", "after"]


def gated(plain: nn.Module, place: str) -> nn.Module:
    options = {"kind": "layer"} if place == "layer" else {"kind": "channel", "position": place}
    return attach_gates(plain, **options).eval()


def some_closed(model: nn.Module, turn: int) -> UnitMask:
    """Every second layer, or every second channel and at some sites all of them."""
    kept = {}
    for number, site in enumerate(sites(model)):
        closed = number % 2 == turn if site.kind == "layer" else site.may_be_empty and number % 4 == turn
        kept[site.name] = [] if closed else range(0, site.units, 1 if site.kind == "layer" else 2)
    return UnitMask.of(kept, sites(model))


def resnet() -> nn.Module:
    return shaken(build_model("resnet20", num_classes=10, width=8)).double().eval()


@pytest.mark.parametrize(("first", "second"), itertools.product(PLACES, PLACES))
def test_a_sliced_network_is_gated_again_and_collapsed_right_or_refused_in_one_line(first, second, tmp_path):
    once = gated(resnet(), first)
    small = collapse(once, some_closed(once, 0))
    try:
        again = gated(small, second)
    except UserError:
        assert first != "layer"
        assert first != "between"
        return
    mask, x = some_closed(again, 1), images(dtype=torch.float64)
    with torch.no_grad():
        twice = collapse(again, mask)
        expected = masked(again, mask)(x)
        assert relative_difference(twice(x), expected) <= 1e-9
        back = load_sliced(save_sliced(twice, tmp_path / "sliced"))
        assert repr(back) == repr(twice)
        assert relative_difference(back(x), expected) <= 1e-9


@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_layers_and_channels_of_one_block_may_go_at_once(place):
    """A closed layer is closed, whatever is said about its channels, and in whichever order."""
    plain = resnet()
    closed = {"layer1.1": (), "layer2.0": ()}
    channels = {f"{name}.{place}": range(4) for name in (*closed, "layer3.2")}
    empty = {f"layer1.1.{place}": ()}
    alone = slice_network(plain, {**closed, f"layer3.2.{place}": range(4)})[0]
    x = images(dtype=torch.float64)
    for kept in ({**closed, **channels}, {**channels, **closed}, {**channels, **empty, **closed}):
        assert torch.equal(slice_network(plain, kept)[0](x), alone(x))


NORMS = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "frozen": lambda model: replaced(model, FrozenBatchNorm2d),
    "GroupNorm": lambda model: replaced(model, lambda channels: nn.GroupNorm(4, channels)),
}


def replaced(model: nn.Module, norm) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            model.set_submodule(name, norm(module.num_features))
    return model


@pytest.mark.parametrize("place", ["before", "between", "after"])
@pytest.mark.parametrize("norm", NORMS)
def test_channels_beside_norms_of_other_kinds_are_sliced_right_or_refused(norm, place):
    maps = OrderedDict(list(ResNet(BasicBlock, [2, 1, 1, 1]).named_children())[:6])
    plain = NORMS[norm](shaken(nn.Sequential(maps))).eval()
    try:
        model = gated(plain, place)
    except UserError:
        return
    mask, x = some_closed(model, 0), images(2, 32)
    with torch.no_grad():
        assert relative_difference(collapse(model, mask)(x), masked(model, mask)(x)) <= 1e-5
