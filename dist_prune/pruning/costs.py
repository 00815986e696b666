"""Costs of units: MACs and parameters of a network as functions of the open units of its sites."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.measure.macs import analyze_macs, count_parameters
from dist_prune.pruning.sites import Site


@dataclass(frozen=True)
class ModuleCost:
    """A module whose MACs depend on open units: MACs in the dense network, times a share for each dimension.

    macs: of the module alone, without the modules inside it, in the dense network.
    dimensions: for each, its size and the entries that a unit of each site (by its number) takes of it.
    needed_by: numbers of the sites without any unit of which the module is gone.
    """

    macs: int
    dimensions: tuple[tuple[int, dict[int, int]], ...]
    needed_by: tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """MACs of one image, and parameters, of a plain network and of everything sliced from it.

    dense: MACs of the whole network.
    parameters: of the whole network.
    sites: those whose units can be open or closed.
    modules: those whose MACs depend on the sites.
    not_counted: operators of the network without a known count (see ``analyze_macs``).
    """

    dense: int
    parameters: int
    sites: tuple[Site, ...]
    modules: tuple[ModuleCost, ...]
    not_counted: tuple[str, ...] = ()

    def of(self, kept: Mapping[str, Collection[int]]) -> int:
        """Return the MACs of the sliced network that keeps these units; sites that are not named stay whole."""
        macs, factors, needed_by = self._matrices
        units = torch.tensor([site.units for site in self.sites])
        left = torch.tensor([len(kept[site.name]) if site.name in kept else site.units for site in self.sites])
        # Without a channel a module may be gone that has MACs of its own left.
        exist = ~needed_by[:, left == 0].any(1)
        remaining = (macs * _open_shares(factors, units - left) * exist).sum()
        # Rounded, doubles hold the count of the sliced network to the last MAC.
        return self.dense - round((macs.sum() - remaining).item())

    def share(self, values: Tensor) -> Tensor:
        """Return the expected share of the dense MACs, differentiable, for mean activations (all units,) in [0, 1].

        It is the share of the sliced network where all values are 0 or 1 and no channel site is empty.
        """
        macs, factors, _ = self._matrices
        sizes = torch.tensor([site.units for site in self.sites], device=values.device)
        site_of_unit = torch.repeat_interleave(torch.arange(len(sizes), device=values.device), sizes)
        closed = values.new_zeros(len(sizes)).index_add(0, site_of_unit, 1 - values)
        gone = macs.to(values) * (1 - _open_shares(factors.to(values), closed))
        return 1 - gone.sum() / self.dense

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return MACs (modules,), what a closed unit takes (dimensions, modules, sites), and who needs which site."""
        # A layer's only unit removes the module as a whole; channel sites scale it by their dimension.
        rows = [
            [*module.dimensions, *((1, {s: 1}) for s in module.needed_by if self.sites[s].kind == "layer")]
            for module in self.modules
        ]
        factors = torch.zeros(max(map(len, rows), default=1), len(rows), len(self.sites), dtype=torch.float64)
        needed_by = torch.zeros(len(rows), len(self.sites), dtype=torch.bool)
        for p, row in enumerate(rows):
            needed_by[p, list(self.modules[p].needed_by)] = True
            for f, (size, entries) in enumerate(row):
                for s, width in entries.items():
                    factors[f, p, s] = width / size
        return torch.tensor([float(module.macs) for module in self.modules], dtype=torch.float64), factors, needed_by

    def unit_shares(self, values: Tensor | None = None) -> Tensor:
        """Return each unit's cost (all units,), a share of the dense MACs, next to ``values`` (default: all open)."""
        units = sum(site.units for site in self.sites)
        values = torch.ones(units, dtype=torch.float64) if values is None else values.detach().clone()
        # The derivative is the cost of a unit, given which of its neighbors are open.
        with torch.enable_grad():
            return torch.autograd.grad(self.share(values.requires_grad_()), values)[0]


def _open_shares(factors: Tensor, closed: Tensor) -> Tensor:
    # A convolution scales with its open inputs times its open outputs: shares multiply over dimensions.
    return (1 - factors @ closed.to(factors)).prod(0)


def unit_costs(plain: nn.Module, input_shape: Sequence[int], sites: Sequence[Site]) -> Costs:
    """Return the MACs of a plain network on images (C, H, W), and how they depend on the units of its ``sites``."""
    count = analyze_macs(plain, input_shape)
    names = dict(plain.named_modules()).keys()
    own = {name: count.by_module[name] for name in names}
    for name in names - {""}:
        own[name.rpartition(".")[0]] -= count.by_module[name]
    dimensions: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    for number, site in enumerate(sites):
        for piece in site.slices:
            # Operations on single tensors of a module are not counted.
            if piece.dim in ("out", "in", "channels"):
                dimensions[piece.module][piece.dim][number] = piece.width
    modules = []
    for name, macs in own.items():
        needed_by = tuple(number for number, site in enumerate(sites) if site.removes(name))
        if macs and (dimensions[name] or needed_by):
            entries = tuple((_size(plain, name, dim, sites), units) for dim, units in dimensions[name].items())
            modules.append(ModuleCost(macs, entries, needed_by))
    return Costs(count.total, count_parameters(plain), tuple(sites), tuple(modules), count.not_counted)


def _size(plain: nn.Module, name: str, dim: str, sites: Sequence[Site]) -> int:
    """Return the number of entries of one dimension of a module."""
    sizes = [piece.size for site in sites for piece in site.slices if (piece.module, piece.dim) == (name, dim)]
    if size := max(sizes):
        return size
    module: Any = plain.get_submodule(name)
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.weight.shape[1 if dim == "in" else 0]
    return module.num_features
