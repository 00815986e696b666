"""Reference networks: the shape of a sliced network, written as plain torch layers with fresh weights.

Nothing here is taken from the sliced network but its numbers of layers and channels. If the sliced network is slower
than its reference, slicing has added overhead.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from dist_prune.models.build import Architecture
from dist_prune.models.cifar_resnet import CifarResNet
from dist_prune.pruning.residual import residual_blocks

Kept = Mapping[str, Sequence[int]]


def reference_network(architecture: Architecture, kept: Kept) -> nn.Module | None:
    """Return a plain network of the shape of ``architecture`` with only the units ``kept``; eval mode.

    None where no plain network has this shape (branches that read from, or add to, some of the channels; sites
    without any channel), and for families other than CIFAR and torchvision ResNets and VGG.
    """
    with torch.device("meta"):
        dense = architecture.build()
    if isinstance(dense, CifarResNet | torchvision.models.ResNet):
        blocks = residual_blocks(dense)
        widths = {site: width for name in blocks for site, width in _widths(name, blocks[name], kept).items()}
        if {*blocks, *widths} >= kept.keys() and all(widths.values()):
            return _resnet(dense, blocks, kept).eval()
    if isinstance(dense, torchvision.models.VGG) and all(kept.values()):
        return _vgg(dense, kept).eval()
    return None


def _widths(name: str, block: Any, kept: Kept) -> dict[str, int]:
    """Return the channels that are left between the convolutions of a residual block, by site."""
    labels = ["between1", "between2"] if hasattr(block, "conv3") else ["between"]
    inner = zip(labels, (block.conv1, block.conv2), strict=False)
    return {f"{name}.{label}": len(kept.get(f"{name}.{label}", range(conv.out_channels))) for label, conv in inner}


class _Block(nn.Module):
    """relu(shortcut(x) + branch(x)), in the steps in which ResNets are usually written."""

    def __init__(self, name: str, block: Any, kept: Kept) -> None:
        super().__init__()
        convs = [getattr(block, conv) for conv in ("conv1", "conv2", "conv3") if hasattr(block, conv)]
        widths = [convs[0].in_channels, *_widths(name, block, kept).values(), convs[-1].out_channels]
        layers: list[nn.Module] = []
        for conv, channels in zip(convs, itertools.pairwise(widths), strict=True):
            layers += [*_conv_bn(conv, *channels), nn.ReLU(inplace=True)]
        # The last ReLU follows the sum.
        self.branch = nn.Sequential(*layers[:-1]) if kept.get(name, [0]) else None
        self.shortcut = copy.deepcopy(block.downsample)  # nothing, or padding, which has no tensors
        if isinstance(block.downsample, nn.Sequential):
            projection: Any = block.downsample[0]
            self.shortcut = nn.Sequential(*_conv_bn(projection, projection.in_channels, projection.out_channels))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        kept = x if self.shortcut is None else self.shortcut(x)
        if self.branch is None:
            return self.relu(kept)
        out = self.branch(x)
        out += kept
        return self.relu(out)


def _conv_bn(like: Any, reads: int, makes: int) -> tuple[nn.Module, nn.Module]:
    return _layer(like, reads, makes), nn.BatchNorm2d(makes)


def _layer(like: Any, reads: int, makes: int) -> nn.Module:
    """Return a layer like another, with channels of its own and fresh weights."""
    if isinstance(like, nn.Conv2d):
        kernel = ("kernel_size", "stride", "padding", "dilation", "groups")
        settings: dict[str, Any] = {key: getattr(like, key) for key in kernel}
        return nn.Conv2d(reads, makes, bias=like.bias is not None, **settings)
    if isinstance(like, nn.BatchNorm2d):
        return nn.BatchNorm2d(makes)
    return nn.Linear(reads, makes) if isinstance(like, nn.Linear) else copy.deepcopy(like)


def _resnet(dense: Any, blocks: Mapping[str, Any], kept: Kept) -> nn.Module:
    stem, stages = dense.conv1, defaultdict(list)
    for name, block in blocks.items():
        if kept.get(name, [0]) or block.downsample is not None:
            stages[name.rpartition(".")[0]].append(_Block(name, block, kept))
    layers = [*_conv_bn(stem, stem.in_channels, stem.out_channels), nn.ReLU(inplace=True)]
    layers += [copy.deepcopy(dense.maxpool)] if hasattr(dense, "maxpool") else []
    layers += [nn.Sequential(*blocks) for blocks in stages.values()]
    head = nn.Linear(dense.fc.in_features, dense.fc.out_features)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def _vgg(dense: Any, kept: Kept) -> nn.Module:
    layers: list[nn.Module] = []
    width = dense.features[0].in_channels
    for number, layer in enumerate(dense.features):
        made = len(kept.get(f"features.{number}", range(getattr(layer, "out_channels", width))))
        layers.append(_layer(layer, width, made))
        width = made
    side = dense.avgpool.output_size[0]
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten()]
    width *= side * side
    for layer in dense.classifier:
        made = getattr(layer, "out_features", width)
        layers.append(_layer(layer, width, made))
        width = made
    return nn.Sequential(*layers)
