"""Networks by name, and recognizing how a network was built."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from dist_prune import UserError, build_model
from dist_prune.models.build import Architecture, architecture_of, remember
from dist_prune.models.cifar_resnet import CifarResNet


@pytest.mark.parametrize("depth", [8, 20, 56, 110])
def test_depth_6n_plus_2_is_a_cifar_resnet(depth):
    model = build_model(f"resnet{depth}", num_classes=7, in_channels=1)
    assert type(model) is CifarResNet
    assert (model.conv1.in_channels, model.fc.out_features) == (1, 7)
    assert architecture_of(model) == Architecture("cifar_resnet", {"depth": depth, "num_classes": 7, "in_channels": 1})


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "torchvision/resnet18"])
def test_torchvision_wins_where_both_exist(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=7)
    assert type(model) is torchvision.models.ResNet
    assert model.fc.out_features == 7


def test_timm_prefix_builds_timm_models_for_any_number_of_channels():
    model = build_model("timm/resnet26", num_classes=7, in_channels=1)
    assert type(model) is timm.models.ResNet
    assert (model.conv1.in_channels, model.fc.out_features) == (1, 7)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt18", "did you mean 'resnet18'"),
        ("resnet21", r"did you mean 'resnet\d+'"),
        ("mobilenet_v22", "did you mean 'mobilenet_v2'"),
        ("timm/resnet2666", "did you mean 'resnet26'"),
        ("caffe/resnet18", "known: cifar_resnet, torchvision/NAME, timm/NAME"),
        ("torchvision/resnet19", "torchvision/resnet19"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError, match=hint):
        build_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("resnet18", {"shortcut": "A"}, "shortcut"),
        ("timm/resnet26", {"shortcut": "A"}, "shortcut"),
        ("resnet20", {"shortcut": "C"}, "'C'"),
        ("resnet20", {"depth": 21}, "6n"),
        ("resnet18", {"in_channels": 1}, "3 input channels"),
    ],
)
def test_arguments_that_the_model_does_not_take_are_the_users_mistake(name, arguments, named):
    with pytest.raises(UserError, match=named):
        build_model(name, num_classes=10, **arguments)


def test_a_description_rebuilds_the_same_structure_with_fresh_weights():
    model = build_model("resnet20", num_classes=5, shortcut="A", width=8)
    described = architecture_of(model).as_dict()
    rebuilt = Architecture(described["builder"], described["arguments"]).build()
    assert repr(rebuilt) == repr(model)
    assert not torch.equal(rebuilt.conv1.weight, model.conv1.weight)


def test_the_description_travels_with_copies_and_not_with_the_weights():
    model = build_model("resnet8", num_classes=5)
    assert architecture_of(copy.deepcopy(model)) == architecture_of(model)
    assert all("architecture" not in name for name in model.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_stock_torchvision_models_are_recognized(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=11)
    assert architecture_of(model) == Architecture(f"torchvision/{name}", {"num_classes": 11})


def test_stock_timm_models_are_recognized():
    model = timm.create_model("resnet26", num_classes=11, in_chans=1)
    assert architecture_of(model) == Architecture("timm/resnet26", {"num_classes": 11, "in_chans": 1})


def without_pooling(model: nn.Module) -> None:
    model.maxpool = nn.Identity()


def other_stem(model: nn.Module) -> None:
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)


def other_stride(model: nn.Module) -> None:
    model.layer2[0].conv1.stride = (1, 1)


def other_activation(model: nn.Module) -> None:
    model.layer1[0].relu = nn.GELU()


def fewer_blocks(model: nn.Module) -> None:
    model.layer4 = model.layer4[:1]


@pytest.mark.parametrize(
    "edit", [without_pooling, other_stem, other_stride, other_activation, fewer_blocks], ids=lambda f: f.__name__
)
def test_an_edited_torchvision_model_is_not_mistaken_for_the_stock_one(edit):
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=3)
        edit(model)
    assert architecture_of(model) is None


def test_an_edited_timm_model_is_not_mistaken_for_the_stock_one():
    model = timm.create_model("resnet26", num_classes=3)
    model.layer1[0].act3 = nn.SiLU()
    assert architecture_of(model) is None


def test_a_class_of_ones_own_is_not_recognized_but_may_be_described():
    class Mine(torchvision.models.ResNet):
        pass

    with torch.device("meta"):
        model = Mine(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=3)
    assert architecture_of(model) is None
    remember(model, Architecture("torchvision/resnet18", {"num_classes": 3}))
    assert architecture_of(model) == Architecture("torchvision/resnet18", {"num_classes": 3})


@pytest.mark.parametrize("name", ["weights", "checkpoint_path", "pretrained_cfg"])
def test_a_description_cannot_make_a_network_load_weights_from_elsewhere(name):
    for builder in ("torchvision/resnet18", "timm/resnet10t"):
        with pytest.raises(UserError, match=f"'{name}' would fetch weights"):
            Architecture(builder, {"num_classes": 2, name: "elsewhere"}).build()


def test_a_cifar_resnet_of_billions_of_layers_is_refused_at_once():
    with pytest.raises(UserError, match="up to 2000"):
        Architecture("cifar_resnet", {"depth": 6 * 10**9 + 2}).build()
