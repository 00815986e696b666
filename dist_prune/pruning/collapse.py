"""Slices of plain networks, and the origin of each of their tensors.

One mechanism serves the end of training, loading a sliced checkpoint and the transitions between phases:
``slicing.remove_units`` removes units from a *plain* network and returns the origin of every narrowed tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from dist_prune.models.build import architecture_of, remember
from dist_prune.pruning.slicing import remove_units, take


@dataclass(frozen=True)
class TensorSlice:
    """The origin of a tensor of a smaller network: its old name and, per dimension, the indices that stay."""

    name: str
    indices: tuple[Tensor | None, ...] = ()

    def take(self, old: Tensor) -> Tensor:
        """Return the part of ``old`` that is inherited."""
        return take(old, self.indices)


def slice_network(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> tuple[nn.Module, dict[str, TensorSlice]]:
    """Return a copy of a plain network with only the units ``kept``, and the origin of each of its tensors.

    A training run carries optimizer state over by these origins. Constants that replace closed units have none.

    Args:
        model: a plain network.
        kept: the units that stay, by site name; sites that are not named stay whole.
    """
    small = copy.deepcopy(model)
    # A stock network is recognized by its structure, which slicing changes.
    architecture = architecture_of(model)
    if architecture is not None:
        remember(small, architecture)
    # The list keeps old tensors alive: an id is unique only among living objects.
    tensors = named_tensors(small)
    before = {id(tensor): name for name, tensor in tensors}
    narrowed = remove_units(small, kept)
    # Whole tensors are the same objects as before; only narrowed ones are new.
    origins = {key: TensorSlice(name) for key, name in before.items()}
    origins |= {id(n.new): TensorSlice(before[id(n.old)], n.indices) for n in narrowed if id(n.old) in before}
    return small, {n: origins[id(tensor)] for n, tensor in named_tensors(small) if id(tensor) in origins}


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers with their qualified names, buffers that are not persistent included."""
    # What is not in state_dict (indices of channels) is built anew, not inherited.
    return list(model.state_dict(keep_vars=True).items())
