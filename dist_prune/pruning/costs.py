"""Costs of units: MACs and parameters of a network as functions of the open units of its sites."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
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
        units = [len(kept[site.name]) if site.name in kept else site.units for site in self.sites]
        total = self.dense
        for module in self.modules:
            # Exact fractions: the count must equal that of the sliced network to the last MAC.
            remaining = Fraction(module.macs)
            for size, entries in module.dimensions:
                gone = sum(width * (self.sites[s].units - units[s]) for s, width in entries.items())
                remaining *= Fraction(size - gone, size)
            total += (int(remaining) if all(units[s] for s in module.needed_by) else 0) - module.macs
        return total

    def share(self, values: Tensor) -> Tensor:
        """Return the expected share of the dense MACs, differentiable, for mean activations (all units,) in [0, 1].

        It is the share of the sliced network where all values are 0 or 1 and no channel site is empty.
        """
        counts = torch.tensor([site.units for site in self.sites], device=values.device)
        site_of_unit = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts)
        closed = torch.zeros(len(counts), device=values.device, dtype=values.dtype)
        closed = closed.index_add(0, site_of_unit, 1 - values)
        # A convolution scales with its open inputs times its open outputs: shares multiply over dimensions.
        macs, factors = self._matrices
        open_shares = 1 - factors.to(values) @ closed
        gone = (macs.to(values) * (1 - open_shares.prod(0))).sum()
        return 1 - gone / self.dense

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """Return the MACs of modules, and by factor, module and site the share that one closed unit removes."""
        rows = [list(module.dimensions) for module in self.modules]
        for row, module in zip(rows, self.modules, strict=True):
            # A layer's only unit removes the module as a whole; channel sites scale it by their dimension.
            row += [(1, {s: 1}) for s in module.needed_by if self.sites[s].kind == "layer"]
        factors = torch.zeros(max(map(len, rows), default=1), len(rows), len(self.sites), dtype=torch.float64)
        for p, row in enumerate(rows):
            for f, (size, entries) in enumerate(row):
                for s, width in entries.items():
                    factors[f, p, s] = width / size
        return torch.tensor([float(module.macs) for module in self.modules], dtype=torch.float64), factors

    def unit_shares(self, values: Tensor | None = None) -> Tensor:
        """Return each unit's cost (all units,), a share of the dense MACs, next to ``values`` (default: all open)."""
        units = sum(site.units for site in self.sites)
        values = torch.ones(units, dtype=torch.float64) if values is None else values.detach().clone()
        # The derivative is the cost of a unit, given which of its neighbors are open.
        with torch.enable_grad():
            return torch.autograd.grad(self.share(values.requires_grad_()), values)[0]


def unit_costs(plain: nn.Module, input_shape: Sequence[int], sites: Sequence[Site]) -> Costs:
    """Return the MACs of a plain network on images (C, H, W), and how they depend on the units of its ``sites``."""
    count = analyze_macs(plain, input_shape)
    own = _own_macs(plain, count.by_module)
    dimensions: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    needed_by: dict[str, list[int]] = defaultdict(list)
    for number, site in enumerate(sites):
        for piece in site.slices:
            dimensions[piece.module][piece.dim][number] = piece.width
        for module in own:
            if any(f"{module}.".startswith(f"{gone}.") for gone in site.branch):
                needed_by[module].append(number)
    modules = tuple(
        ModuleCost(
            own[name],
            tuple((_size(plain, name, dim, sites), e) for dim, e in dimensions[name].items()),
            tuple(needed_by[name]),
        )
        for name in own
        if own[name] and (dimensions[name] or needed_by[name])
    )
    return Costs(count.total, count_parameters(plain), tuple(sites), modules, count.not_counted)


def _own_macs(plain: nn.Module, by_module: Mapping[str, int]) -> dict[str, int]:
    """Return the MACs of each module without those of the modules in it."""
    children: dict[str, int] = defaultdict(int)
    for name in dict(plain.named_modules()):
        if name:
            children[name.rpartition(".")[0]] += by_module[name]
    return {name: by_module[name] - children[name] for name in dict(plain.named_modules())}


def _size(plain: nn.Module, name: str, dim: str, sites: Sequence[Site]) -> int:
    """Return the number of entries of one dimension of a module."""
    module: Any = plain.get_submodule(name)
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.weight.shape[1 if dim == "in" else 0]
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    # Pooling has no tensor that would tell its size.
    return next(piece.size for site in sites for piece in site.slices if piece.module == name)
