"""Slicing: remove units from a *plain* network, in place, as its sites describe.

Tensors that stay whole remain the same objects; narrowed ones come with the indices that they keep of the old
tensor, so that optimizer state can follow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.pruning.channel_sites import POSITIONS, channel_sites
from dist_prune.pruning.layer_sites import layer_sites
from dist_prune.pruning.replace_blocks import replace_closed_blocks
from dist_prune.pruning.replacement_blocks import AddToChannels, SelectChannels
from dist_prune.pruning.sites import Site


@dataclass(frozen=True)
class SlicedTensor:
    """A tensor taken from a larger one: per dimension the kept indices, None for all of them."""

    new: Tensor
    old: Tensor
    indices: tuple[Tensor | None, ...]


def remove_units(plain: nn.Module, kept: Mapping[str, Sequence[int]]) -> list[SlicedTensor]:
    """Remove all units but ``kept`` from a plain network, in place.

    The network remembers ``kept`` for its sliced checkpoint.

    Args:
        plain: a network without gates.
        kept: the units that stay, by site name; sites that are not named stay whole.

    Returns:
        The tensors that became smaller; all others are the same objects as before.

    Raises:
        UserError: for a site that the network does not have, or one that would be left without any path.
    """
    known = {site.name: site for site in all_sites(plain)}
    for name, units in kept.items():
        if name not in known:
            raise UserError(f"the network has no site '{name}'")
        known[name].check_units(units)
    chosen = {known[name]: sorted(units) for name, units in kept.items()}
    # Order matters: constants are computed from whole layers, and replacements of blocks from narrowed ones.
    changed = {site: units for site, units in chosen.items() if len(units) < site.units}
    _absorb_constants(plain, changed)
    narrowed = _narrow_modules(plain, changed)
    gone = replace_closed_blocks(plain, changed, {*known, *getattr(plain, "dist_prune_kept", {})})
    _connect(plain, {site: units for site, units in changed.items() if units and site.block not in gone})
    _remember(plain, kept)
    return narrowed


def all_sites(plain: nn.Module) -> tuple[Site, ...]:
    """Return every site of a plain network: layers, and channels at every position."""
    channels = tuple(site for position in POSITIONS for site in channel_sites(plain, position))
    return layer_sites(plain) + channels


def _remember(plain: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    before: dict[str, list[int]] = dict(getattr(plain, "dist_prune_kept", {}))
    for name, units in kept.items():
        # Units are counted from the dense network: a checkpoint slices that in one step, whatever the steps here.
        before[name] = [before[name][unit] for unit in units] if name in before else list(units)
    plain.dist_prune_kept = before  # type: ignore[assignment]


def _dropped(changed: Mapping[Site, Sequence[int]]) -> dict[tuple[str, str], set[int]]:
    """Return the entries to remove, by module and dimension; modules that are removed as a whole are not named."""
    dropped: dict[tuple[str, str], set[int]] = defaultdict(set)
    for site, units in changed.items():
        for piece in site.slices:
            # An emptied site removes its branch; only what lies outside of it still has something to narrow.
            if not units and any(f"{piece.module}.".startswith(f"{gone}.") for gone in site.branch):
                continue
            closed = set(range(site.units)) - set(units)
            dropped[piece.module, piece.dim] |= {entry for unit in closed for entry in piece.entries(unit)}
    return dropped


def _narrow_modules(plain: nn.Module, changed: Mapping[Site, Sequence[int]]) -> list[SlicedTensor]:
    by_module: dict[str, dict[str, set[int]]] = defaultdict(dict)
    for (name, dim), entries in _dropped(changed).items():
        by_module[name][dim] = entries
    return [n for name, dims in by_module.items() for n in _narrow(plain.get_submodule(name), dims)]


def _narrow(module: Any, dropped: Mapping[str, set[int]]) -> list[SlicedTensor]:
    """Remove entries from a convolution, linear layer or norm; other modules (pooling) have no tensors."""
    rows = dropped.get("out", dropped.get("channels"))
    columns = dropped.get("in")
    if isinstance(module, nn.Conv2d | nn.Linear):
        if "weight_mask" in module._buffers:
            raise UserError("this network computes with a weight mask: slice units before masking weights")
        narrowed = [_replace(module, "weight", rows, columns)]
        narrowed += [_replace(module, "bias", rows)] if rows and module.bias is not None else []
        outputs, inputs = module.weight.shape[:2]
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = outputs, inputs
        elif "channels" in dropped:  # depthwise
            module.out_channels = module.in_channels = module.groups = outputs
        else:
            module.out_channels, module.in_channels = outputs, inputs
        return narrowed
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        names = [n for n in ("weight", "bias", "running_mean", "running_var") if getattr(module, n) is not None]
        module.num_features -= len(rows or ())
        return [_replace(module, name, rows) for name in names]
    return []


def _replace(module: nn.Module, name: str, *dropped: set[int] | None) -> SlicedTensor:
    old = getattr(module, name)
    indices = tuple(_rest(old.shape[dim], gone, old.device) for dim, gone in enumerate(dropped))
    new = take(old.detach(), indices)
    # A new object, not new data in the old one: optimizers and transitions know tensors by identity.
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)
    return SlicedTensor(new, old, indices)


def _rest(size: int, gone: set[int] | None, device: torch.device) -> Tensor | None:
    return torch.tensor([i for i in range(size) if i not in gone], device=device) if gone else None


def take(old: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Return the entries at ``indices`` of each dimension (None: all of them), as a tensor of its own."""
    for dimension, index in enumerate(indices):
        if index is not None:
            old = old.index_select(dimension, index.to(old.device))
    return old.clone()


def _connect(plain: nn.Module, changed: Mapping[Site, Sequence[int]]) -> None:
    """Connect narrowed branches to the channels between blocks, which all stay."""
    for site, units in changed.items():
        # A branch selects the channels that it reads, or adds to some of them.
        if site.position == "before":
            reader = plain.get_submodule(site.gate_at)
            plain.set_submodule(site.gate_at, nn.Sequential(SelectChannels(units), reader))
        elif site.position == "after":
            plain.set_submodule(site.block, AddToChannels(plain.get_submodule(site.block), units))


@torch.no_grad()
def _absorb_constants(plain: nn.Module, changed: Mapping[Site, Sequence[int]]) -> None:
    """Add the constants that norms make of closed maps to the biases of the layers behind them."""
    for site, units in changed.items():
        closed = torch.tensor(sorted(set(range(site.units)) - set(units)))
        for absorbed in site.absorbed:
            norm: Any = plain.get_submodule(absorbed.norm)
            reader: Any = plain.get_submodule(absorbed.consumer)
            offset = next(piece.offset for piece in site.slices if piece.module == absorbed.norm)
            entries = (closed + offset).to(norm.weight.device)
            scale = norm.weight[entries] / (norm.running_var[entries] + norm.eps).sqrt()
            constant = F.relu(norm.bias[entries] - norm.running_mean[entries] * scale)
            added = reader.weight[:, entries].flatten(1) @ constant
            # relu(shift) of a closed map is the same at every pixel, and the reader is a 1x1 layer: a bias holds it.
            if reader.bias is None:
                reader.bias = nn.Parameter(torch.zeros_like(added))
            reader.bias += added
