"""Sites of known families of networks. A further family is one more function or entry of a table.

Layer sites: residual branches, each of them one unit. ResNet blocks are described by their ``ResidualForm``; in other
families a branch is one child of its block, at which a gate opens and closes it.

Channel sites: feature maps, each of them one unit. ``between``: maps between two layers of a block, in every family.
``before`` and ``after``: the maps that the branch of a residual block reads from, and adds to, its shortcut (Figure 3
of arXiv 2302.10798).
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torchvision
from torch import nn
from torchvision.models.convnext import CNBlock
from torchvision.models.densenet import DenseNet
from torchvision.models.googlenet import Inception
from torchvision.models.inception import InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.vision_transformer import EncoderBlock

from dist_prune.pruning.replacement_blocks import AddToChannels, ConstantMap, SelectChannels, Shift
from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import AbsorbedConstant, ChannelSlice, Site
from dist_prune.pruning.traced_sites import traced_sites

POSITIONS = ("before", "between", "after")


def sites_named(plain: nn.Module, names: Iterable[str]) -> dict[str, Site]:
    """Return every site of a plain network by name: layers, and channels at every position.

    A network is traced for its sites only if some of ``names`` are none of a known family.

    Raises:
        UserError: the network cannot be traced.
    """
    found = layer_sites(plain) + tuple(site for position in POSITIONS for site in _family_sites(plain, position))
    known = {site.name: site for site in found}
    if set(names) - known.keys():
        known |= {site.name: site for site in traced_sites(plain).sites}
    return known


def layer_sites(plain: nn.Module) -> tuple[Site, ...]:
    """Return all layer sites of a plain network, in its order."""
    return tuple(_collect(plain, _layers))


def channel_sites(plain: nn.Module, position: str = "between") -> tuple[Site, ...]:
    """Return all channel sites of a plain network at one position, in its order; empty where there are none.

    ``between`` sites of a network that is of no known family are found in its trace.

    Raises:
        UserError: the network is of no known family and cannot be traced.
    """
    # Blocks that slicing has replaced have lost the names of the dense network, by which a checkpoint describes them.
    replaced = any(
        isinstance(module, AddToChannels | ConstantMap | SelectChannels | Shift) for module in plain.modules()
    )
    if (found := _family_sites(plain, position)) or position != "between" or replaced:
        return found
    return traced_sites(plain).sites


def _family_sites(plain: nn.Module, position: str) -> tuple[Site, ...]:
    # Grouped convolutions and norms other than batch norm do not work channel by channel: no listed site touches them.

    def channels(module: nn.Module) -> Iterable[Site]:
        if residual_form(module) is not None:
            return _residual(module, position)
        return _FAMILIES[type(module)](module) if position == "between" and type(module) in _FAMILIES else ()

    found = _collect(plain, channels)
    return tuple(site for site in found if all(_can_be_sliced(plain, piece) for piece in site.slices))


def _collect(plain: nn.Module, sites_of: Callable[[nn.Module], Iterable[Site]]) -> Iterator[Site]:
    """Yield the sites of all modules; ``sites_of`` names them as seen from the module."""
    # Wrapped modules have lost the names of the dense network, by which a sliced checkpoint describes them.
    wrapped = tuple(f"{name}." for name, module in plain.named_modules() if isinstance(module, AddToChannels))
    for name, module in plain.named_modules():
        if not name.startswith(wrapped):
            # A block that is the whole network has no parent in which a replacement could stand.
            yield from (site for inner in sites_of(module) if (site := inner.within(name)).block != "")


def _can_be_sliced(plain: nn.Module, piece: ChannelSlice) -> bool:
    module = plain.get_submodule(piece.module)
    if isinstance(module, nn.Conv2d):
        return module.groups == (module.in_channels if piece.dim == "channels" else 1)
    return bool(piece.size) or isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm)


def _layers(block: nn.Module) -> Iterator[Site]:
    if form := residual_form(block):
        yield Site("", "layer", 1, block="", branch=tuple(form.branch_modules(block)))
    # By the child whose output is added to the shortcut: all children that only this branch uses.
    branches: dict[str, tuple[str, ...]] = {}
    # Blocks without a shortcut have no branch: closing one would leave no path.
    if isinstance(block, InvertedResidual) and block.use_res_connect:
        branches = {"conv": ("conv",)}
    elif isinstance(block, CNBlock):
        branches = {"block": ("block",)}
    elif isinstance(block, EncoderBlock):
        # Each branch takes its norm along: nothing else reads it. (torchvision's dropout follows attention only.)
        branches = {"self_attention": ("ln_1", "self_attention", "dropout"), "mlp": ("ln_2", "mlp")}
    for child, needs in branches.items():
        yield Site(child, "layer", 1, block="", gate_at=child, branch=needs)


def _residual(block: Any, position: str) -> Iterator[Site]:
    """ResNet blocks: conv1, bn1, conv2, bn2 and in bottlenecks conv3, bn3."""
    convs = [getattr(block, conv) for conv in ("conv1", "conv2", "conv3") if hasattr(block, conv)]
    # Attention, anti-aliasing and dropout between the layers would also have to be sliced, or see pruned maps.
    timm_extras = [getattr(block, extra, None) for extra in ("se", "aa", "drop_block", "drop_path")]
    if any(not isinstance(conv, nn.Conv2d) or conv.groups > 1 for conv in convs) or any(
        not isinstance(extra, nn.Identity | None) for extra in timm_extras
    ):
        return
    branch, last = tuple(form_of(block).branch_modules(block)), len(convs)
    if position == "before":
        # With nothing to read, the first norm still sends a constant map to the second convolution.
        reads, gone = (ChannelSlice("conv1", "in"),), ("conv1", "bn1")
        yield Site(position, "channel", convs[0].in_channels, position, "", "conv1", slices=reads, branch=gone)
    elif position == "after":
        makes = ChannelSlice(f"conv{last}", "out"), ChannelSlice(f"bn{last}", "channels")
        yield Site(position, "channel", convs[-1].out_channels, position, "", f"bn{last}", True, makes, branch)
    else:
        for i, conv in enumerate(convs[:-1], start=1):
            label, reader = "between" if last == 2 else f"between{i}", f"conv{i + 1}"
            uses = ChannelSlice(f"conv{i}", "out"), ChannelSlice(f"bn{i}", "channels"), ChannelSlice(reader, "in")
            yield Site(label, "channel", conv.out_channels, position, "", reader, False, uses, branch)


def _inner(name: str, units: int, gate_at: str, slices: Iterable[ChannelSlice]) -> Site:
    # Without a shortcut an empty site would leave no path through the network.
    return Site(name, "channel", units, "between", None, gate_at, True, tuple(slices), may_be_empty=False)


def _vgg(model: Any) -> Iterator[Site]:
    """VGG: the maps of every convolution; the last ones are read by the classifier, pixel by pixel."""
    convs = [i for i, module in enumerate(model.features) if isinstance(module, nn.Conv2d)]
    for i, following in zip(convs, [*convs[1:], None], strict=True):
        norm = isinstance(model.features[i + 1], nn.BatchNorm2d)
        units = model.features[i].out_channels
        slices = [ChannelSlice(f"features.{i}", "out")]
        slices += [ChannelSlice(f"features.{i + 1}", "channels")] if norm else []
        if following is None:
            # The classifier reads flattened maps: a channel is as many adjacent inputs as it has pixels.
            pixels = model.classifier[0].in_features // units
            # Pooling has MACs, so it is named although it has no tensors.
            slices += [
                ChannelSlice("avgpool", "channels", size=units),
                ChannelSlice("classifier.0", "in", width=pixels),
            ]
        else:
            slices += [ChannelSlice(f"features.{following}", "in")]
        yield _inner(f"features.{i}", units, f"features.{i + 1 + norm}", slices)


def _inverted_residual(block: Any) -> Iterator[Site]:
    """MobileNetV2: the expanded channels, which a depthwise convolution passes on one by one."""
    # The first block does not expand: it has no maps between its layers but those of the depthwise convolution.
    if len(block.conv) != 4:
        return
    slices = [ChannelSlice("conv.0.0", "out"), ChannelSlice("conv.2", "in")]
    slices += [ChannelSlice(module, "channels") for module in ("conv.0.1", "conv.1.0", "conv.1.1")]
    if block.use_res_connect:
        units, gone = block.conv[2].in_channels, ("conv",)
        yield Site("between", "channel", units, "between", "", "conv.1", True, tuple(slices), gone)
    else:
        yield _inner("between", block.conv[2].in_channels, "conv.1", slices)


def _densenet(model: DenseNet) -> Iterator[Site]:
    """DenseNet: the new maps of each dense layer, which every later layer of its block reads."""
    features = dict(model.features.named_children())
    blocks = [child for child in features if child.startswith("denseblock")]
    for number, child in enumerate(blocks, start=1):
        layers = {f"features.{child}.{name}": layer for name, layer in features[child].named_children()}
        names, is_last = list(layers), number == len(blocks)
        tail = f"features.transition{number}"
        behind = ("features.norm5", "classifier") if is_last else (f"{tail}.norm", f"{tail}.conv")
        offset = layers[names[0]].norm1.num_features
        for position, (name, layer) in enumerate(layers.items(), start=1):
            # Every later layer of the block and the transition behind it read these maps from a concatenation.
            readers = [*((f"{later}.norm1", f"{later}.conv1") for later in names[position:]), behind]
            slices = [ChannelSlice(f"{name}.conv2", "out")]
            for norm, consumer in readers:
                slices += [ChannelSlice(norm, "channels", offset), ChannelSlice(consumer, "in", offset)]
            # The network pools the last maps in its own forward, which has MACs as well.
            slices += [ChannelSlice("", "channels", offset, size=model.classifier.in_features)] if is_last else []
            absorbed = tuple(AbsorbedConstant(*reader) for reader in readers)
            units, at = layer.conv2.out_channels, f"{name}.conv2"
            yield Site(name, "channel", units, "between", name, at, True, tuple(slices), (name,), absorbed)
            offset += units


def _chains(*chains: tuple[str, ...]) -> Callable[[nn.Module], Iterator[Site]]:
    """Return a family of blocks with branches: each chain names layers that read each other; ``a|b`` both read."""

    def sites(block: nn.Module) -> Iterator[Site]:
        for producer, readers in itertools.chain.from_iterable(map(itertools.pairwise, chains)):
            slices = [ChannelSlice(f"{producer}.conv", "out"), ChannelSlice(f"{producer}.bn", "channels")]
            slices += [ChannelSlice(f"{reader}.conv", "in") for reader in readers.split("|")]
            conv: Any = block.get_submodule(f"{producer}.conv")
            yield _inner(producer, conv.out_channels, producer, slices)

    return sites


_FAMILIES: dict[type[nn.Module], Callable[[Any], Iterator[Site]]] = {
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
