"""Closing: what takes the place of a block, or of a part of it, when all units of a site are gone."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from dist_prune.pruning.replacement_blocks import AttentionOnly, ConstantMap, MlpOnly, Shift, own_activation
from dist_prune.pruning.residual import residual_form
from dist_prune.pruning.sites import Site


def close(plain: nn.Module, closed: Sequence[Site], site_names: Collection[str]) -> None:
    """Replace, in place, every block that has a site in ``closed``; site_names: of all sites, past ones too."""
    by_block: dict[str, list[Site]] = defaultdict(list)
    for site in closed:
        by_block[site.block].append(site)
    for name, sites in by_block.items():
        block = plain.get_submodule(name)
        if sites[0].position == "before" and sites[0].kind == "channel":
            _read_nothing(block)
        elif _is_dense_layer(sites[0]):
            parent, _, child = name.rpartition(".")
            del cast(nn.ModuleDict, plain.get_submodule(parent))[child]
        else:
            plain.set_submodule(name, _rest_of(block, sites, _is_first(name, site_names)))


def _is_dense_layer(site: Site) -> bool:
    """DenseNet: its new maps are joined to those before them, so without any the layer is simply not there."""
    return site.branch == (site.block,)


def _is_first(name: str, blocks: Collection[str]) -> bool:
    """Whether no residual block stands, or stood, directly before this one in the same sequence."""
    parent, _, position = name.rpartition(".")
    before = f"{parent}.{int(position) - 1}" if position.isdigit() else None
    return before is None or not any(f"{name}.".startswith(f"{before}.") for name in blocks)


def _rest_of(block: nn.Module, sites: Sequence[Site], is_first: bool) -> nn.Module:
    if isinstance(block, EncoderBlock):
        closed = {site.gate_at.rpartition(".")[2] for site in sites}
        if len(closed) == 2:
            return nn.Identity()
        return MlpOnly(block) if "self_attention" in closed else AttentionOnly(block)
    constant = None
    if sites[0].kind == "channel" and sites[0].position == "between":
        constant = _constant_branch(block, sites)
    if residual_form(block) is not None:
        return _shortcut_only(block, constant, keeps_activation=is_first)
    return nn.Identity() if constant is None else Shift(constant)


def _shortcut_only(block: nn.Module, constant: Tensor | None, keeps_activation: bool) -> nn.Module:
    """act(shortcut(x) + constant): what remains of a residual block whose branch reads nothing any more.

    A ReLU behind an unchanged shortcut repeats the ReLU that ended the block before: relu(relu(x)) = relu(x),
    so it is left out there and the block costs nothing.
    """
    form = residual_form(block)
    assert form is not None
    shortcut, activation = form.shortcut_of(block), own_activation(block)
    steps = [] if shortcut is None else [shortcut]
    steps += [] if constant is None else [Shift(constant)]
    if steps:
        return nn.Sequential(*steps, activation)
    repeats = isinstance(activation, nn.ReLU) and not keeps_activation
    return nn.Identity() if repeats else activation


@torch.no_grad()
def _constant_branch(block: Any, sites: Sequence[Site]) -> Tensor:
    """What a branch adds to each channel (C,) when the maps at ``sites`` are zero: the same at every pixel."""
    silent = copy.deepcopy(block).eval()
    for site in sites:
        reader = next(cut.module for cut in site.cuts if cut.dim == "in")
        silent.get_submodule(reader.removeprefix(f"{site.block}.")).weight.zero_()
    weight = next(m.weight for m in silent.modules() if isinstance(m, nn.Conv2d))
    nothing = weight.new_zeros(1, weight.shape[1], 8, 8)
    form = residual_form(silent)
    return (silent.conv(nothing) if form is None else form.branch(silent, nothing))[0, :, 0, 0].clone()


@torch.no_grad()
def _read_nothing(block: Any) -> None:
    """The first convolution has no channel left to read: its norm sends a constant on."""
    nothing = block.conv1.weight.new_zeros(1, block.conv1.out_channels, 1, 1)
    constant = (
        copy.deepcopy(block.bn1).eval()(nothing)[0, :, 0, 0].clone()
    )  # the activation follows in the block
    stride = block.conv1.stride[0]
    block.conv1, block.bn1 = ConstantMap(constant, stride), nn.Identity()
