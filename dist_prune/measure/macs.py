"""MACs: fvcore's count of a network in eval mode, and what each unit of each site costs.

fvcore counts multiply-accumulates (and calls them flops): convolution and linear, 2 per batch-norm element
in eval mode, pooling. Elementwise additions and activations count nothing.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.pruning.sites import Site

with warnings.catch_warnings():  # fvcore scripts functions on import, which torch deprecates
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


@dataclass(frozen=True)
class Part:
    """A module whose MACs depend on open units: MACs of the dense network, times a share for each dimension.

    dimensions: for each, its size and the entries that a unit of each site (by its number) takes of it;
    needed_by: numbers of the sites without any unit of which the part is gone.
    """

    macs: int
    dimensions: tuple[tuple[int, dict[int, int]], ...]
    needed_by: tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """MACs of one image, and parameters.

    dense: MACs of the whole plain network; sites: those whose units can be open or closed; parts: what depends
    on them; parameters: of the whole plain network.
    """

    dense: int
    parameters: int
    sites: tuple[Site, ...]
    parts: tuple[Part, ...]

    def of(self, kept: Mapping[str, Collection[int]]) -> int:
        """MACs of the sliced network that keeps these units; sites that are not named stay whole."""
        units = [len(kept[site.name]) if site.name in kept else site.units for site in self.sites]
        total = self.dense
        for part in self.parts:
            remaining = Fraction(part.macs)
            for size, entries in part.dimensions:
                gone = sum(width * (self.sites[s].units - units[s]) for s, width in entries.items())
                remaining *= Fraction(size - gone, size)
            total += (int(remaining) if all(units[s] for s in part.needed_by) else 0) - part.macs
        return total

    def share(self, values: Tensor) -> Tensor:
        """The expected share of the dense MACs, differentiable, for mean activations (all units,) in [0, 1].

        It is the share of the sliced network where all values are 0 or 1 and no channel site is empty.
        """
        counts = torch.tensor([site.units for site in self.sites], device=values.device)
        site_of_unit = torch.repeat_interleave(torch.arange(len(counts), device=values.device), counts)
        closed = torch.zeros(len(counts), device=values.device, dtype=values.dtype)
        closed = closed.index_add(0, site_of_unit, 1 - values)
        macs, factors = self._matrices
        open_shares = 1 - factors.to(values) @ closed
        gone = (macs.to(values) * (1 - open_shares.prod(0))).sum()
        return 1 - gone / self.dense

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """MACs of each part; and by factor and part the share of it that goes with one closed unit of each site."""
        rows = [list(part.dimensions) for part in self.parts]
        for row, part in zip(rows, self.parts, strict=True):
            row += [(1, {s: 1}) for s in part.needed_by if self.sites[s].kind == "layer"]
        factors = torch.zeros(max(map(len, rows), default=1), len(rows), len(self.sites), dtype=torch.float64)
        for p, row in enumerate(rows):
            for f, (size, entries) in enumerate(row):
                for s, width in entries.items():
                    factors[f, p, s] = width / size
        return torch.tensor([float(part.macs) for part in self.parts], dtype=torch.float64), factors

    def unit_shares(self, values: Tensor | None = None) -> Tensor:
        """What each unit costs (all units,), as a share of the dense MACs, next to ``values`` (default: all open)."""
        units = sum(site.units for site in self.sites)
        values = torch.ones(units, dtype=torch.float64) if values is None else values.detach().clone()
        with torch.enable_grad():
            return torch.autograd.grad(self.share(values.requires_grad_()), values)[0]


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """MACs of one image of ``input_shape`` (C, H, W) through ``model`` in eval mode, exactly as fvcore counts."""
    return int(_analysis(model, input_shape).total())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def unit_costs(plain: nn.Module, input_shape: Sequence[int], sites: Sequence[Site]) -> Costs:
    """MACs of a plain network, and how they depend on the units of ``sites``, which are sites of it."""
    analysis = _analysis(plain, input_shape)
    own = _own_macs(plain, analysis.by_module())
    dimensions: dict[str, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(dict))
    needed_by: dict[str, list[int]] = defaultdict(list)
    for number, site in enumerate(sites):
        for cut in site.cuts:
            dimensions[cut.module][cut.dim][number] = cut.width
        for module in own:
            if any(f"{module}.".startswith(f"{gone}.") for gone in site.branch):
                needed_by[module].append(number)
    parts = tuple(
        Part(
            own[name],
            tuple((_size(plain, name, dim, sites), e) for dim, e in dimensions[name].items()),
            tuple(needed_by[name]),
        )
        for name in own
        if own[name] and (dimensions[name] or needed_by[name])
    )
    return Costs(int(analysis.total()), count_parameters(plain), tuple(sites), parts)


def _own_macs(plain: nn.Module, by_module: Mapping[str, float]) -> dict[str, int]:
    """MACs of each module without those of the modules in it."""
    children: dict[str, float] = defaultdict(float)
    for name in dict(plain.named_modules()):
        if name:
            children[name.rpartition(".")[0]] += by_module[name]
    return {name: int(by_module[name] - children[name]) for name in dict(plain.named_modules())}


def _size(plain: nn.Module, name: str, dim: str, sites: Sequence[Site]) -> int:
    """The number of entries of one dimension of a module."""
    module: Any = plain.get_submodule(name)
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.weight.shape[1 if dim == "in" else 0]
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    return next(cut.size for site in sites for cut in site.cuts if cut.module == name)


def _analysis(model: nn.Module, input_shape: Sequence[int]) -> FlopCountAnalysis:
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(
        logging.ERROR
    )  # it lists every op that counts nothing
    model = copy.deepcopy(model).float().cpu().eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, *input_shape))
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
