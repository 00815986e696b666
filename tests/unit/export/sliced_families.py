"""Small sliced networks of each family, with every second unit gone."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models import DenseNet, MobileNetV2, ResNet, VisionTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.inception import BasicConv2d, InceptionA
from torchvision.models.resnet import Bottleneck
from unit_helpers import shaken, small_vgg

from dist_prune import build_model
from dist_prune.pruning.families import channel_sites, layer_sites
from dist_prune.pruning.slicing import slice_network


def cifar(shortcut: str = "B") -> nn.Module:
    return build_model("resnet8", num_classes=10, shortcut=shortcut, width=4)


def bottleneck() -> nn.Module:
    """The first block of a torchvision ResNet, between its first layers and a head of its own."""
    whole = ResNet(Bottleneck, [1, 1, 1, 1])
    parts = [*list(whole.named_children())[:5], ("avgpool", whole.avgpool), ("flatten", nn.Flatten())]
    return nn.Sequential(OrderedDict([*parts, ("fc", nn.Linear(256, 10))]))


def mobilenet() -> nn.Module:
    return MobileNetV2(10, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 1, 2]])


def inception() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(228, 10)]
    return nn.Sequential(BasicConv2d(3, 8, kernel_size=3), InceptionA(8, 4), *head)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], layer_scale=0.5, num_classes=10)


def vit() -> nn.Module:
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zero, as torchvision makes it
    return model


# name: how it is built, what is taken out of it, and how many of its batch norms can be folded
FAMILIES = {
    "cifar B, layers": (cifar, "layer", "all"),
    "cifar A, channels between": (lambda: cifar("A"), "between", "all"),
    "cifar B, channels after": (cifar, "after", "all"),
    "torchvision bottleneck, channels": (bottleneck, "between", "all"),
    "vgg with norms": (lambda: small_vgg(batch_norm=True), "between", "all"),
    "mobilenet, channels": (mobilenet, "between", "all"),
    "densenet": (lambda: DenseNet(4, (2, 2), 8, num_classes=10), "between", 5),  # the first, and each norm2
    "inception": (inception, "between", "all"),
    "convnext": (convnext, "layer", "all"),  # it has layer norms only
    "vit": (vit, "layer", "all"),
}


def sliced(family: str) -> nn.Module:
    make, position, _ = FAMILIES[family]
    plain = shaken(make()).eval()
    sites = layer_sites(plain) if position == "layer" else channel_sites(plain, position)
    assert sites
    kept = {
        site.name: [0][: number % 2] if site.kind == "layer" else list(range(0, site.units, 2))
        for number, site in enumerate(sites)
    }
    return slice_network(plain, kept)[0].eval()
