"""Slicing: remove units from a *plain* network as its sites describe, and tell where each tensor comes from.

One mechanism serves the end of training, loading a sliced checkpoint and the transitions between phases. Tensors that
stay whole remain the same objects; narrowed ones come with the indices that they keep of the old tensor, so that
optimizer state can follow. ``close_units`` is the reference that slicing must equal: the same network with its closed
units contributing exactly zero.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.models.build import architecture_of, remember
from dist_prune.pruning.families import sites_named
from dist_prune.pruning.narrowing import TensorSlice, narrow_modules
from dist_prune.pruning.replacement_blocks import AddToChannels, SelectChannels, replace_closed_blocks
from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import Site


def slice_network(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> tuple[nn.Module, dict[str, TensorSlice]]:
    """Return a copy of a plain network with only the units ``kept``, and the origin of each of its tensors.

    A training run carries optimizer state over by these origins. Constants that replace closed units have none.

    Args:
        model: a plain network.
        kept: the units that stay, by site name; sites that are not named stay whole.
    """
    small = copy.deepcopy(model)
    return small, slice_in_place(small, kept)


def slice_in_place(plain: nn.Module, kept: Mapping[str, Sequence[int]]) -> dict[str, TensorSlice]:
    """Leave only the units ``kept`` in a plain network, as ``slice_network`` does; return the origins."""
    # A stock network is recognized by its structure, which slicing changes.
    architecture = architecture_of(plain)
    if architecture is not None:
        remember(plain, architecture)
    # What is not in state_dict (indices of channels) is built anew, not inherited. Whole tensors are the same objects
    # as before. The dictionary keeps all of them alive: an id is unique only among the living.
    before = plain.state_dict(keep_vars=True)
    narrowed = remove_units(plain, kept)
    origins = {id(tensor): TensorSlice(name) for name, tensor in before.items()}
    origins |= {id(tensor): origin for tensor, origin in narrowed if origin.name in before}
    after = plain.state_dict(keep_vars=True)
    return {name: origins[id(tensor)] for name, tensor in after.items() if id(tensor) in origins}


def remove_units(plain: nn.Module, kept: Mapping[str, Sequence[int]]) -> list[tuple[Tensor, TensorSlice]]:
    """Remove all units but ``kept`` from a plain network, in place.

    The network remembers ``kept`` for its sliced checkpoint.

    Args:
        plain: a network without gates.
        kept: the units that stay, by site name; sites that are not named stay whole.

    Returns:
        The tensors that became smaller, each with its origin; all others are the same objects as before.

    Raises:
        UserError: for a site that the network does not have, or one that would be left without any path.
    """
    known = sites_named(plain, kept)
    for name, units in kept.items():
        if name not in known:
            raise UserError(f"the network has no site '{name}'")
        known[name].check_units(units)
    changed = {known[name]: sorted(units) for name, units in kept.items() if len(units) < known[name].units}
    # Order matters: constants are computed from whole layers, and replacements of blocks from narrowed ones.
    _absorb_constants(plain, changed)
    narrowed = narrow_modules(plain, {site: closed_units(site, units) for site, units in changed.items()})
    before: dict[str, list[int]] = dict(getattr(plain, "dist_prune_kept", {}))
    gone = replace_closed_blocks(plain, changed, {*known, *before})
    _connect(plain, {site: units for site, units in changed.items() if units and site.block not in gone})
    for name, units in kept.items():
        # Units are counted from the dense network: a checkpoint slices that in one step, whatever the steps here.
        before[name] = [before[name][unit] for unit in units] if name in before else list(units)
    plain.dist_prune_kept = before  # type: ignore[assignment]
    return narrowed


def closed_units(site: Site, kept: Sequence[int]) -> list[int]:
    """Return the units of a site that do not stay."""
    return sorted(set(range(site.units)) - set(kept))


def _connect(plain: nn.Module, changed: Mapping[Site, Sequence[int]]) -> None:
    """Connect narrowed branches to the channels between blocks, which all stay."""
    for site, units in changed.items():
        if site.position == "before":
            reader = plain.get_submodule(site.gate_at)
            plain.set_submodule(site.gate_at, nn.Sequential(SelectChannels(units), reader))
        elif site.position == "after" and site.block is not None:
            plain.set_submodule(site.block, AddToChannels(plain.get_submodule(site.block), units))


@torch.no_grad()
def _absorb_constants(plain: nn.Module, changed: Mapping[Site, Sequence[int]]) -> None:
    """Add the constants that norms make of closed maps to the biases of the layers behind them."""
    for site, units in changed.items():
        closed = torch.tensor(closed_units(site, units))
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


def close_units(plain: nn.Module, kept: Mapping[str, Sequence[int]], sites: Mapping[str, Site]) -> nn.Module:
    """Return a copy of a plain network with all units but ``kept`` closed by hooks; eval mode.

    Args:
        plain: a network without gates.
        kept: the units that stay, by site name; sites that are not named stay whole.
        sites: the sites of the network by name.
    """
    # Hooks leave the modules and their names alone, so weights load into the copy as into the network itself.
    masked = copy.deepcopy(plain)
    for name, units in kept.items():
        site = sites[name]
        module = masked.get_submodule(site.gate_at)
        if site.kind == "channel":
            opened = torch.zeros(site.units).index_fill(0, torch.tensor(list(units), dtype=torch.long), 1)
            scale = partial(_scale, opened[list(site.channels)] if site.channels else opened, site.axis)
            if site.behind:
                module.register_forward_hook(lambda _, inputs, output, scale=scale: scale(output))
            else:
                module.register_forward_pre_hook(lambda _, inputs, scale=scale: (scale(inputs[0]),))
        elif not units and residual_form(module):
            module.register_forward_hook(_keep_shortcut)
        elif not units:
            # The last module that only the branch uses hands its output to the sum with the shortcut.
            masked.get_submodule(site.branch[-1]).register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    return masked.eval()


def _scale(opened: Tensor, axis: int, maps: Tensor) -> Tensor:
    return maps * opened.to(maps).view(-1, *[1] * (maps.dim() - axis - 1))


def _keep_shortcut(block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    # The block has computed its branch already; its sum is taken anew without it.
    form = form_of(block)
    shortcut = getattr(block, form.shortcut)
    return getattr(block, form.activation)(inputs[0] if shortcut is None else shortcut(inputs[0]))
