"""Plain networks whose closed units contribute exactly zero: the reference that slicing must equal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.pruning.residual import form_of, residual_form
from dist_prune.pruning.sites import Site


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
            scale = partial(_scale, torch.zeros(site.units).index_fill(0, torch.tensor(units, dtype=torch.long), 1))
            if site.behind:
                module.register_forward_hook(lambda _, inputs, output, scale=scale: scale(output))
            else:
                module.register_forward_pre_hook(lambda _, inputs, scale=scale: (scale(inputs[0]),))
        elif not units and residual_form(module):
            module.register_forward_hook(_keep_shortcut)
        elif not units:
            # The last module that only the branch uses hands its output to the sum with the shortcut.
            masked.get_submodule(site.branch[-1]).register_forward_hook(_zero)
    return masked.eval()


def _scale(opened: Tensor, maps: Tensor) -> Tensor:
    return maps * opened.to(maps).view(1, -1, *[1] * (maps.dim() - 2))


def _keep_shortcut(block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    # The block has computed its branch already; its sum is taken anew without it.
    form = form_of(block)
    shortcut = getattr(block, form.shortcut)
    return getattr(block, form.activation)(inputs[0] if shortcut is None else shortcut(inputs[0]))


def _zero(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)
