"""Channel sites: feature maps of known families that can be pruned, each of them one unit.

``between``: maps between two layers of a block, in every family. ``before`` and ``after``: the maps that the branch
of a residual block reads from, and adds to, its shortcut (Figure 3 of arXiv 2302.10798). A further family is one
more function.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torchvision
from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.models.googlenet import Inception
from torchvision.models.inception import InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from torchvision.models.mobilenetv2 import InvertedResidual

from dist_prune.pruning.replacement_blocks import open_to_sites
from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import AbsorbedConstant, ChannelSlice, Site

POSITIONS = ("before", "between", "after")


def channel_sites(plain: nn.Module, position: str = "between") -> tuple[Site, ...]:
    """Return all channel sites of a plain network at one position, in its order; empty where there are none.

    Grouped convolutions and norms other than batch norm do not work channel by channel: no site touches them.
    """
    sites: list[Site] = []
    for name, module in open_to_sites(plain):
        if residual_form(module) is not None:
            sites += list(_residual(name, module, position))
        elif position == "between" and (family := _FAMILIES.get(type(module))):
            sites += list(family(name, module))
    # The root of a network has no parent in which a replacement could stand.
    named = [site for site in sites if not site.name.startswith(".")]
    return tuple(site for site in named if all(_can_be_sliced(plain, piece) for piece in site.slices))


def _can_be_sliced(plain: nn.Module, piece: ChannelSlice) -> bool:
    module = plain.get_submodule(piece.module)
    if isinstance(module, nn.Conv2d):
        return module.groups == (module.in_channels if piece.dim == "channels" else 1)
    return bool(piece.size) or isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm)


def _residual(name: str, block: Any, position: str) -> Iterator[Site]:
    """ResNet blocks: conv1, bn1, conv2, bn2 and in bottlenecks conv3, bn3."""
    convs = [conv for conv in ("conv1", "conv2", "conv3") if hasattr(block, conv)]
    plain_convs = all(isinstance(getattr(block, c), nn.Conv2d) and getattr(block, c).groups == 1 for c in convs)
    # Attention, anti-aliasing and dropout between the layers would also have to be sliced, or see pruned maps.
    timm_extras = [getattr(block, extra, None) for extra in ("se", "aa", "drop_block", "drop_path")]
    if not plain_convs or any(not isinstance(extra, nn.Identity | None) for extra in timm_extras):
        return
    branch = tuple(f"{name}.{child}" for child in form_of(block).branch_modules(block))
    stage, last = name.rpartition(".")[0], len(convs)

    def site(label: str, units: int, gate_at: str, slices: list[tuple[str, str]], gone: tuple[str, ...]) -> Site:
        where = tuple(ChannelSlice(f"{name}.{module}", dim) for module, dim in slices)
        at, behind = f"{name}.{gate_at}", position == "after"
        return Site(f"{name}.{label}", "channel", units, stage, position, name, at, behind, where, gone)

    if position == "before":
        # With nothing to read, the first norm still sends a constant map to the second convolution.
        gone = (f"{name}.conv1", f"{name}.bn1")
        yield site("before", block.conv1.in_channels, "conv1", [("conv1", "in")], gone)
    elif position == "after":
        slices = [(f"conv{last}", "out"), (f"bn{last}", "channels")]
        yield site("after", getattr(block, f"conv{last}").out_channels, f"bn{last}", slices, branch)
    else:
        for i in range(1, last):
            slices = [(f"conv{i}", "out"), (f"bn{i}", "channels"), (f"conv{i + 1}", "in")]
            label = "between" if last == 2 else f"between{i}"
            yield site(label, getattr(block, f"conv{i}").out_channels, f"conv{i + 1}", slices, branch)


def _vgg(name: str, model: Any) -> Iterator[Site]:
    """VGG: the maps of every convolution; the last ones are read by the classifier, pixel by pixel."""
    prefix = f"{name}." if name else ""
    convs = [i for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)]
    for i, following in zip(convs, [*convs[1:], None], strict=True):
        norm = isinstance(model.features[i + 1], nn.BatchNorm2d)
        units = model.features[i].out_channels
        slices = [ChannelSlice(f"{prefix}features.{i}", "out")]
        slices += [ChannelSlice(f"{prefix}features.{i + 1}", "channels")] if norm else []
        if following is None:
            # The classifier reads flattened maps: a channel is as many adjacent inputs as it has pixels.
            pixels = model.classifier[0].in_features // units
            # Pooling has MACs, so it is named although it has no tensors.
            slices += [ChannelSlice(f"{prefix}avgpool", "channels", size=units)]
            slices += [ChannelSlice(f"{prefix}classifier.0", "in", width=pixels)]
        else:
            slices += [ChannelSlice(f"{prefix}features.{following}", "in")]
        at = f"{prefix}features.{i + 1 + norm}"
        yield _inner(f"{prefix}features.{i}", f"{prefix}features", units, at, slices)


def _inverted_residual(name: str, block: Any) -> Iterator[Site]:
    """MobileNetV2: the expanded channels, which a depthwise convolution passes on one by one."""
    # The first block does not expand: it has no maps between its layers but those of the depthwise convolution.
    if len(block.conv) != 4:
        return
    slices = [ChannelSlice(f"{name}.conv.0.0", "out"), ChannelSlice(f"{name}.conv.0.1", "channels")]
    slices += [ChannelSlice(f"{name}.conv.1.0", "channels"), ChannelSlice(f"{name}.conv.1.1", "channels")]
    slices += [ChannelSlice(f"{name}.conv.2", "in")]
    units, stage = block.conv[2].in_channels, name.rpartition(".")[0]
    site = _inner(f"{name}.between", stage, units, f"{name}.conv.1", slices)
    if block.use_res_connect:
        site = dataclasses.replace(site, block=name, branch=(f"{name}.conv",), may_be_empty=True)
    yield site


def _densenet(name: str, model: DenseNet) -> Iterator[Site]:
    """DenseNet: the new maps of each dense layer, which every later layer of its block reads."""
    prefix = f"{name}." if name else ""
    features = dict(model.features.named_children())
    blocks = [child for child in features if child.startswith("denseblock")]
    for number, child in enumerate(blocks):
        layers = dict(features[child].named_children())
        names = [f"{prefix}features.{child}.{layer}" for layer in layers]
        offset = next(iter(layers.values())).norm1.num_features
        tail = "norm5" if number == len(blocks) - 1 else f"transition{number + 1}"
        for position, layer in enumerate(layers.values()):
            # Every later layer of the block and the transition behind it read these maps from a concatenation.
            readers = [(f"{later}.norm1", f"{later}.conv1") for later in names[position + 1 :]]
            if tail == "norm5":
                readers.append((f"{prefix}features.norm5", f"{prefix}classifier"))
            else:
                readers.append((f"{prefix}features.{tail}.norm", f"{prefix}features.{tail}.conv"))
            slices = [ChannelSlice(f"{names[position]}.conv2", "out")]
            for norm, consumer in readers:
                slices += [ChannelSlice(norm, "channels", offset), ChannelSlice(consumer, "in", offset)]
            # The network pools the last maps in its own forward, which has MACs as well.
            if tail == "norm5":
                slices.append(ChannelSlice(name, "channels", offset, size=model.classifier.in_features))
            units, at = layer.conv2.out_channels, f"{names[position]}.conv2"
            yield Site(
                names[position], "channel", units, f"{prefix}features.{child}", "between",
                block=names[position], gate_at=at, behind=True, slices=tuple(slices), branch=(names[position],),
                absorbed=tuple(AbsorbedConstant(norm, consumer) for norm, consumer in readers),
            )  # fmt: skip
            offset += units


def _chains(*chains: tuple[str, ...]) -> Callable[[str, nn.Module], Iterator[Site]]:
    """Return a family of blocks with branches: each chain names layers that read each other; ``a|b`` both read."""

    def sites(name: str, block: nn.Module) -> Iterator[Site]:
        for chain in chains:
            for producer, readers in itertools.pairwise(chain):
                at = f"{name}.{producer}"
                slices = [ChannelSlice(f"{at}.conv", "out"), ChannelSlice(f"{at}.bn", "channels")]
                slices += [ChannelSlice(f"{name}.{reader}.conv", "in") for reader in readers.split("|")]
                units = block.get_submodule(f"{producer}.conv").out_channels
                yield _inner(at, name, units, at, slices)  # type: ignore[arg-type]

    return sites


def _inner(name: str, stage: str, units: int, gate_at: str, slices: list[ChannelSlice]) -> Site:
    # Without a shortcut an empty site would leave no path through the network.
    return Site(
        name, "channel", units, stage, "between", gate_at=gate_at, behind=True, slices=tuple(slices),
        may_be_empty=False,
    )  # fmt: skip


_FAMILIES: dict[type[nn.Module], Callable[[str, Any], Iterator[Site]]] = {
    torchvision.models.VGG: _vgg,
    InvertedResidual: _inverted_residual,
    DenseNet: _densenet,
    Inception: _chains(("branch2.0", "branch2.1"), ("branch3.0", "branch3.1")),
    InceptionA: _chains(("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
    InceptionB: _chains(("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")),
    InceptionC: _chains(
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    ),
    InceptionD: _chains(
        ("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4")
    ),
    InceptionE: _chains(
        ("branch3x3_1", "branch3x3_2a|branch3x3_2b"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a|branch3x3dbl_3b"),
    ),
}
