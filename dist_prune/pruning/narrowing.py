"""Narrowing: remove the entries of closed units from the tensors of modules, whatever the modules are."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.errors import UserError
from dist_prune.pruning.sites import Site


@dataclass(frozen=True)
class TensorSlice:
    """The origin of a tensor of a smaller network: its old name and, per dimension, the indices that stay."""

    name: str
    indices: tuple[Tensor | None, ...] = ()

    def take(self, old: Tensor) -> Tensor:
        """Return the part of ``old`` that is inherited, as a tensor of its own."""
        for dimension, index in enumerate(self.indices):
            if index is not None:
                old = old.index_select(dimension, index.to(old.device))
        return old.clone()


def narrow_modules(plain: nn.Module, closed: Mapping[Site, Sequence[int]]) -> list[tuple[Tensor, TensorSlice]]:
    """Remove closed units from the tensors of a plain network, in place.

    Args:
        plain: the network.
        closed: the units to remove, by site.

    Returns:
        The tensors that became smaller, each with its origin.
    """
    dropped: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for site, units in closed.items():
        for piece in site.slices:
            # An emptied site removes its branch; only what lies outside of it still has something to narrow.
            if len(units) < site.units or not site.removes(piece.module):
                dropped[piece.module][piece.dim] |= {entry for unit in units for entry in piece.of(unit)}
        for attribute in site.attributes:
            module = plain.get_submodule(attribute.module)
            setattr(module, attribute.name, getattr(module, attribute.name) - attribute.per_unit * len(units))
    return [tensor for name, dims in dropped.items() for tensor in _narrow(plain, name, dims)]


def _narrow(plain: nn.Module, name: str, dropped: Mapping[str, set[int]]) -> list[tuple[Tensor, TensorSlice]]:
    """Remove entries from all tensors of a module that have them; pooling has none."""
    module: Any = plain.get_submodule(name)
    if "weight_mask" in module._buffers:
        raise UserError("this network computes with a weight mask: slice units before masking weights")
    gone: dict[str, dict[int, set[int]]] = defaultdict(dict)
    for dim, entries in dropped.items():
        for tensor, axis in _tensors(module, dim):
            gone[tensor][axis] = entries
    found = []
    for tensor, axes in gone.items():
        if (old := getattr(module, tensor)) is not None:
            indices = tuple(_rest(old, axis, axes.get(axis)) for axis in range(old.dim()))
            origin = TensorSlice(f"{name}.{tensor}".strip("."), indices)
            new = origin.take(old.detach())
            # A new object, not new data in the old one: optimizers and transitions know tensors by identity.
            new = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
            setattr(module, tensor, new)
            found.append((new, origin))
    _count(module, {dim: len(entries) for dim, entries in dropped.items()})
    return found


def _tensors(module: Any, dim: str) -> list[tuple[str, int]]:
    """Return the tensors of a module, each with the axis, that have the entries of a dimension."""
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        made, read = (1, 0) if isinstance(module, nn.modules.conv._ConvTransposeNd) else (0, 1)
        return [("weight", read)] if dim == "in" else [("weight", made), ("bias", 0)]
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return [(tensor, 0) for tensor in ("weight", "bias", "running_mean", "running_var") if hasattr(module, tensor)]
    if dim == "channels":
        return []
    # A tensor of a module of the user's, such as a scale for each channel.
    shape = getattr(module, dim).shape
    return [(dim, next(axis for axis, size in enumerate(shape) if size > 1))]


def _count(module: Any, gone: Mapping[str, int]) -> None:
    """Correct the numbers of channels that a module remembers."""
    both = gone.get("channels", 0)
    if isinstance(module, nn.Linear):
        module.out_features -= gone.get("out", 0)
        module.in_features -= gone.get("in", 0)
    elif isinstance(module, nn.modules.conv._ConvNd):
        groups = module.groups - both * module.groups // module.out_channels
        module.in_channels -= gone.get("in", 0) + module.in_channels // module.groups * (module.groups - groups)
        module.out_channels -= gone.get("out", 0) + both
        module.groups = groups
    elif isinstance(module, nn.GroupNorm):
        module.num_groups -= both * module.num_groups // module.num_channels
        module.num_channels -= both
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features -= both


def _rest(old: Tensor, dim: int, gone: set[int] | None) -> Tensor | None:
    return torch.tensor([i for i in range(old.shape[dim]) if i not in gone], device=old.device) if gone else None
