"""Plain modules that replace blocks, or parts of blocks, in sliced networks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from dist_prune.pruning.residual import form_of


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


def open_to_sites(plain: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield all modules with their qualified names, except those that an earlier slicing has wrapped."""
    # Wrapped modules have lost the names of the dense network, by which a sliced checkpoint describes them.
    inside = [f"{name}." for name, module in plain.named_modules() if isinstance(module, AddToChannels)]
    for name, module in plain.named_modules():
        if not name.startswith(tuple(inside)):
            yield name, module


def own_activation(block: nn.Module) -> nn.Module:
    """Return a copy of a residual block's last activation that leaves its input unchanged."""
    # Without a branch its input may be the output of the previous block, which backward still needs.
    activation = copy.deepcopy(getattr(block, form_of(block).activation))
    if hasattr(activation, "inplace"):
        activation.inplace = False
    return activation
