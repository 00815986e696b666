"""Collapse: gated network + mask -> a plain, smaller network with the same outputs.

One mechanism serves the end of training, loading a sliced checkpoint and the transitions between phases:
``remove_units`` takes units out of a *plain* network and keeps the very parameter objects that stay, so what
was inherited from where can be read off by identity.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from dist_prune.consensus.mask import Mask
from dist_prune.errors import UserError
from dist_prune.gates import FixedGate, gated_blocks, sites
from dist_prune.models import architecture_of, remember, residual_blocks, residual_form


def masked(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy of the gated network with its gates fixed to ``mask`` for every sample; eval mode."""
    fixed = copy.deepcopy(model)
    Mask.of(mask.kept, sites(fixed))
    for name, block in gated_blocks(fixed):
        reference = next(block.block.parameters())
        open_units = torch.zeros(block.gate.units, device=reference.device, dtype=reference.dtype)
        open_units[list(mask.kept[name])] = 1
        block.gate = FixedGate(open_units)
    return fixed.eval()


def collapse(model: nn.Module, mask: Mask) -> nn.Module:
    """A plain network, in eval mode, with the outputs of ``masked(model, mask)``; ``model`` stays as it is.

    Raises UserError if the mask does not fit the model or would leave a site without any path.
    """
    Mask.of(mask.kept, sites(model))
    return cut(model, mask.kept)[0].eval()


def cut(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> tuple[nn.Module, dict[str, str]]:
    """A copy of a gated or plain network, without gates and with only the units ``kept``.

    Also returns, for each tensor of the small network, the name that it has in ``model``: by it a training
    run carries optimizer state over.
    """
    small = copy.deepcopy(model)
    architecture = architecture_of(model)
    if architecture is not None:
        remember(small, architecture)
    origins = {id(tensor): name for name, tensor in _named_tensors(small)}
    remove_units(strip_gates(small), kept)
    return small, {name: origins[id(tensor)] for name, tensor in _named_tensors(small)}


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def strip_gates(model: nn.Module) -> nn.Module:
    """Take all gates out, in place: every gated block becomes the block it wraps. Returns the model."""
    for name, wrapper in list(gated_blocks(model)):
        model.set_submodule(name, wrapper.block)
    return model


def remove_units(plain: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Remove all units but ``kept`` (by site name) from a plain network, in place.

    What stays are the same parameter objects. The network remembers ``kept`` for its sliced checkpoint.
    Raises UserError for a site that the network does not have.
    """
    blocks = residual_blocks(plain)
    before = getattr(plain, "dist_prune_kept", {})
    for name, units in kept.items():
        if name not in blocks:
            raise UserError(f"the network has no site '{name}'")
        if not units:
            is_first = _is_first(name, {*blocks, *before})
            plain.set_submodule(name, _shortcut_only(blocks[name], keeps_activation=is_first))
    now = {name: list(units) for name, units in kept.items()}
    plain.dist_prune_kept = {**before, **now}  # type: ignore[assignment]


def _is_first(name: str, blocks: Collection[str]) -> bool:
    """Whether no residual block stands, or stood, directly before this one in the same sequence."""
    parent, _, position = name.rpartition(".")
    return not position.isdigit() or f"{parent}.{int(position) - 1}" not in blocks


def _shortcut_only(block: nn.Module, keeps_activation: bool) -> nn.Module:
    """act(shortcut(x)): what remains of a residual block whose branch is closed.

    A ReLU behind an unchanged shortcut repeats the ReLU that ended the block before: relu(relu(x)) = relu(x),
    so it is left out there and the block costs nothing.
    """
    form = residual_form(block)
    assert form is not None
    shortcut, activation = form.shortcut_of(block), form.activation_of(block)
    activation = copy.deepcopy(activation)
    if hasattr(activation, "inplace"):
        # Its input may be a tensor that the block before still needs for its backward pass.
        activation.inplace = False  # type: ignore[assignment]
    if shortcut is not None:
        return nn.Sequential(shortcut, activation)
    repeats = isinstance(activation, nn.ReLU) and not keeps_activation
    return nn.Identity() if repeats else activation
