"""Collapse: gated network + mask -> a plain, smaller network with the same outputs.

One mechanism serves the end of training, loading a sliced checkpoint and the transitions between phases:
``slicing.remove_units`` takes units out of a *plain* network and says what was taken from where.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_prune.gates.gate import FixedGate
from dist_prune.gates.insertion import gated_modules, sites, strip_gates
from dist_prune.models.build import architecture_of, remember
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.slicing import remove_units, take


@dataclass(frozen=True)
class TensorSlice:
    """Where a tensor of a smaller network comes from: its old name and, per dimension, the indices that stay."""

    name: str
    indices: tuple[Tensor | None, ...] = ()

    def take(self, old: Tensor) -> Tensor:
        """The part of ``old`` that is inherited."""
        return take(old, self.indices)


def masked(model: nn.Module, mask: UnitMask) -> nn.Module:
    """A copy of the gated network with its gates fixed to ``mask`` for every sample; eval mode."""
    fixed = copy.deepcopy(model)
    UnitMask.of(mask.kept, sites(fixed))
    for _, gated in gated_modules(fixed):
        reference = next(fixed.parameters())
        open_units = torch.zeros(gated.gate.units, device=reference.device, dtype=reference.dtype)
        open_units[list(mask.kept[gated.site.name])] = 1
        gated.gate = FixedGate(open_units)
    return fixed.eval()


def collapse(model: nn.Module, mask: UnitMask) -> nn.Module:
    """A plain network, in eval mode, with the outputs of ``masked(model, mask)``; ``model`` stays as it is.

    Raises UserError if the mask does not fit the model or would leave a site without any path.
    """
    UnitMask.of(mask.kept, sites(model))
    return slice_network(model, mask.kept)[0].eval()


def slice_network(
    model: nn.Module, kept: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, dict[str, TensorSlice]]:
    """A copy of a gated or plain network, without gates and with only the units ``kept``.

    Also returns, for each tensor of the small network that comes from ``model``, its origin there: by it a
    training run carries optimizer state over. (Constants that closed units left behind have none.)
    """
    small = copy.deepcopy(model)
    architecture = architecture_of(model)
    if architecture is not None:
        remember(small, architecture)
    tensors = _named_tensors(small)  # held, so that no new tensor comes to lie where one of them was
    before = {id(tensor): name for name, tensor in tensors}
    narrowed = remove_units(strip_gates(small), kept)
    origins = {key: TensorSlice(name) for key, name in before.items()}
    origins |= {id(n.new): TensorSlice(before[id(n.old)], n.indices) for n in narrowed if id(n.old) in before}
    return small, {n: origins[id(tensor)] for n, tensor in _named_tensors(small) if id(tensor) in origins}


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]
