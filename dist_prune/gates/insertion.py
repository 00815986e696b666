"""Insertion of gates: residual blocks are wrapped, never edited, so that slicing can take them out again."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from dist_prune.errors import UserError, nearest
from dist_prune.gates.heads import HEADS
from dist_prune.gates.modules import Gate, LayerGate
from dist_prune.gates.ops import add_gated
from dist_prune.models import Site, architecture_of, remember, residual_blocks, residual_form


class GatedBlock(nn.Module):
    """act(shortcut(x) + g(x) * F(x)): a residual block whose branch a gate opens or closes per sample.

    ``block`` is the original block, untouched: with the gate open the wrapper computes what the block does.
    """

    def __init__(self, block: nn.Module, gate: Gate) -> None:
        super().__init__()
        form = residual_form(block)
        assert form is not None, f"{type(block).__name__} is not a residual block of a known family"
        self.block = block
        self.gate = gate
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> what the original block returns, (B, C_out, H', W')."""
        for_branch, for_shortcut, decisions = self.gate(x)
        branch = self.form.branch(self.block, for_branch)
        shortcut = self.form.shortcut_of(self.block)
        kept = for_shortcut if shortcut is None else shortcut(for_shortcut)
        activation = self.form.activation_of(self.block)
        if type(activation) is nn.ReLU:
            return add_gated(kept, decisions, branch, relu=True)
        return activation(add_gated(kept, decisions, branch))


def attach_gates(
    model: nn.Module,
    kind: str = "layer",
    head: str = "ste",
    hidden: int = 16,
    open_bias: float | None = 1.0,
) -> nn.Module:
    """Put a gate on every residual block of ``model``, in place, and return the model.

    kind: ``layer`` (one gate a block); head: a name of ``HEADS``; hidden: width of the gating module;
    open_bias: see ``LayerGate``. Blocks are those of our CIFAR ResNets, of torchvision's and timm's ResNet
    families and their subclasses. Raises UserError if there is none, or if the model has gates already.
    """
    if kind != "layer":
        raise UserError(f"gates of kind '{kind}' are not available; {nearest(kind, ['layer'])}")
    if head not in HEADS:
        raise UserError(f"unknown gate head '{head}'; {nearest(head, HEADS)}")
    if any(True for _ in gated_blocks(model)):
        raise UserError("this model has gates already")
    architecture = architecture_of(model)
    blocks = residual_blocks(model)
    if not blocks or "" in blocks:
        raise UserError(
            f"{type(model).__name__} has no residual block of a known family in it (ResNet blocks)"
        )
    reference = next(model.parameters())
    for name, block in blocks.items():
        gate = LayerGate(block_in_channels(block), hidden, head, open_bias)
        model.set_submodule(name, GatedBlock(block, gate.to(reference.device, reference.dtype)))
    return model if architecture is None else remember(model, architecture)


def block_in_channels(block: nn.Module) -> int:
    """The number of channels of a residual block's input."""
    return next(m.in_channels for m in block.modules() if isinstance(m, nn.Conv2d))


def gated_blocks(model: nn.Module) -> Iterator[tuple[str, GatedBlock]]:
    """All gated blocks with their qualified names, in the order of the network."""
    for name, module in model.named_modules():
        if isinstance(module, GatedBlock):
            yield name, module


def sites(model: nn.Module) -> tuple[Site, ...]:
    """The sites that the gates of ``model`` control, in the order of the network."""
    return tuple(Site(name, "layer", module.gate.units) for name, module in gated_blocks(model))
