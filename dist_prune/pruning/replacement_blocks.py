"""Replacement of blocks, or parts of them, that have lost all units of a site, by plain modules."""

import copy
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import Site


def replace_closed_blocks(
    plain: nn.Module, kept: Mapping[Site, Sequence[int]], site_names: Collection[str]
) -> set[str]:
    """Replace, in place, every block that has lost all units of a site; return the blocks that are gone as a whole.

    Args:
        plain: the network, its layers already narrowed to ``kept``.
        kept: the remaining units of each site that has lost some.
        site_names: of all sites, those of earlier slicings included.
    """
    by_block: dict[str, dict[Site, Sequence[int]]] = defaultdict(dict)
    for site, units in kept.items():
        if site.block is not None:
            by_block[site.block][site] = units
    gone = set()
    for name, sites in by_block.items():
        block, closed = plain.get_submodule(name), [site for site, units in sites.items() if not units]
        if all(site.position == "before" for site in closed):
            # The branch still computes something from its constant input: padding makes borders of it.
            if closed:
                _read_nothing(block)
            continue
        gone.add(name)
        # DenseNet concatenates new maps to older ones: a layer without any is removed without a replacement.
        if closed[0].branch == (name,):
            parent, _, child = name.rpartition(".")
            del cast(nn.ModuleDict, plain.get_submodule(parent))[child]
        else:
            plain.set_submodule(name, _rest_of(block, sites, closed, _is_first(name, site_names)))
    return gone


def _is_first(name: str, blocks: Collection[str]) -> bool:
    """Tell whether no residual block stands, or stood, directly before this one in the same sequence."""
    parent, _, position = name.rpartition(".")
    before = f"{parent}.{int(position) - 1}" if position.isdigit() else None
    return before is None or not any(f"{name}.".startswith(f"{before}.") for name in blocks)


def _rest_of(block: nn.Module, kept: Mapping[Site, Sequence[int]], closed: Sequence[Site], is_first: bool) -> nn.Module:
    if isinstance(block, EncoderBlock):
        branches = {site.gate_at.rpartition(".")[2] for site in closed}
        if len(branches) == 2:
            return nn.Identity()
        return MlpOnly(block) if "self_attention" in branches else AttentionOnly(block)
    constant = None
    # A closed layer, or an output without open channels, adds zero: no constant is left of such a branch.
    if all(site.position in ("before", "between") for site in closed):
        constant = _constant_branch(block, [site for site in closed if site.position == "between"])
        # The narrowed branch yields its open outputs only; the shortcut has all channels.
        for site, units in kept.items():
            if site.position == "after":
                constant = constant.new_zeros(site.units).index_copy(
                    0, torch.tensor(units, device=constant.device), constant
                )
    if residual_form(block) is not None:
        return _shortcut_only(block, constant, keeps_activation=is_first)
    return nn.Identity() if constant is None else Shift(constant)


def _shortcut_only(block: nn.Module, constant: Tensor | None, keeps_activation: bool) -> nn.Module:
    """Return act(shortcut(x) + constant): a residual block whose branch does not depend on x any more.

    A ReLU behind an unchanged shortcut repeats the ReLU that ended the block before: relu(relu(x)) = relu(x),
    so it is dropped there and the block costs nothing.
    """
    shortcut, activation = getattr(block, form_of(block).shortcut), own_activation(block)
    steps = [] if shortcut is None else [shortcut]
    steps += [] if constant is None else [Shift(constant)]
    if steps:
        return nn.Sequential(*steps, activation)
    repeats = isinstance(activation, nn.ReLU) and not keeps_activation
    return nn.Identity() if repeats else activation


@torch.no_grad()
def _constant_branch(block: Any, sites: Sequence[Site]) -> Tensor:
    """Return what a branch adds to each channel (C,) when the maps at ``sites`` are zero: the same at every pixel."""
    # Zero weights in the reader stand for zero maps in front of it; the rest of the branch then computes the constant.
    silent = copy.deepcopy(block).eval()
    for site in sites:
        reader = next(piece.module for piece in site.slices if piece.dim == "in")
        silent.get_submodule(reader.removeprefix(f"{site.block}.")).weight.zero_()
    weight = next(m.weight for m in silent.modules() if isinstance(m, nn.Conv2d))
    nothing = weight.new_zeros(1, weight.shape[1], 8, 8)
    form = residual_form(silent)
    return (silent.conv(nothing) if form is None else form.branch(silent, nothing))[0, :, 0, 0].clone()


@torch.no_grad()
def _read_nothing(block: Any) -> None:
    """Replace a first convolution that has no channel left to read by the constant that its norm makes."""
    nothing = block.conv1.weight.new_zeros(1, block.conv1.out_channels, 1, 1)
    # Without the activation, which still follows in the block.
    constant = copy.deepcopy(block.bn1).eval()(nothing)[0, :, 0, 0].clone()
    stride = block.conv1.stride[0]
    block.conv1, block.bn1 = ConstantMap(constant, stride), nn.Identity()


def own_activation(block: nn.Module) -> nn.Module:
    """Return a copy of a residual block's last activation that leaves its input unchanged."""
    # Without a branch its input may be the output of the previous block, which backward still needs.
    activation = copy.deepcopy(getattr(block, form_of(block).activation))
    if hasattr(activation, "inplace"):
        activation.inplace = False
    return activation


class Shift(nn.Module):
    """x + shift, per channel: the output of a branch whose channels are all closed."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return x + self.shift.view(-1, 1, 1)


class ConstantMap(nn.Module):
    """The same value at every pixel of a channel: a convolution without inputs, and the norm behind it."""

    def __init__(self, values: Tensor, stride: int) -> None:
        super().__init__()
        self.values = nn.Parameter(values)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        height, width = (-(-size // self.stride) for size in x.shape[2:])
        values = self.values.view(1, -1, 1, 1).expand(len(x), -1, height, width)
        # An activation behind it may work in place, which an expanded view forbids.
        return values.clone()


class SelectChannels(nn.Module):
    """The channels that a branch reads; a view where they are adjacent."""

    index: Tensor

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(list(channels)), persistent=False)
        self.first, self.count = channels[0], len(channels)
        self.side_by_side = list(channels) == list(range(channels[0], channels[0] + len(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, selected channels, H, W)."""
        # A view is free; index_select copies the maps.
        if self.side_by_side:
            return x.narrow(1, self.first, self.count)
        return x.index_select(1, self.index)

    def extra_repr(self) -> str:
        """Return the number of channels: structures are compared by their text."""
        return f"{self.count} channels"


class AddToChannels(nn.Module):
    """act(shortcut(x) + F(x)) for a branch F that adds to some of the channels only."""

    index: Tensor

    def __init__(self, block: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.block = block
        self.register_buffer("index", torch.tensor(list(channels)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        form = form_of(self.block)
        shortcut = getattr(self.block, form.shortcut)
        kept = x if shortcut is None else shortcut(x)
        # Under autocast the branch computes in half precision and the shortcut may not.
        added = kept.index_add(1, self.index, form.branch(self.block, x).to(kept.dtype))
        return getattr(self.block, form.activation)(added)

    def extra_repr(self) -> str:
        """Return the number of channels: structures are compared by their text."""
        return f"{self.index.numel()} channels"


class AttentionOnly(nn.Module):
    """A transformer block without its MLP branch."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.ln_1, self.self_attention, self.dropout = block.ln_1, block.self_attention, block.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> the same shape."""
        read = self.ln_1(x)
        return x + self.dropout(self.self_attention(read, read, read, need_weights=False)[0])


class MlpOnly(nn.Module):
    """A transformer block without its attention branch."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.ln_2, self.mlp = block.ln_2, block.mlp

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, C) -> the same shape."""
        return x + self.mlp(self.ln_2(x))
