"""Baselines: the dense network, and uniform ones of the budget's MACs, trained from scratch.

A user who wants half of the MACs could train a plain network of that size: what gates find must beat it.
"""

import dataclasses
import itertools
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from dist_prune.errors import UserError
from dist_prune.gates.insertion import find_sites
from dist_prune.measure.macs import count_macs
from dist_prune.methods.base import Method, Phase, Phases, Task
from dist_prune.models.build import architecture_of
from dist_prune.pruning.costs import Costs
from dist_prune.pruning.mask import Decision
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import slice_network

_WIDTHS = {"cifar_resnet": ("width", 16.0), "torchvision/mobilenet_v2": ("width_mult", 1.0)}
_WIDTH_STEPS = 1024  # how finely uniform_width divides the range of widths


class Dense(Method):
    """Train the recipe's network as it is."""

    def phases(self) -> Phases:
        """One phase."""
        yield Phase("dense", self.task.build(), self.task.config.epochs)


class _Uniform(Method):
    reads = frozenset({"target_macs"})

    @property
    def target(self) -> float:
        """The budget, as a fraction of the dense MACs."""
        config = self.task.config
        if config.target_macs is None:
            raise UserError(f"method '{config.method}' needs a budget: --set target_macs=0.5")
        return config.target_macs

    def _phase(self, kept: dict[str, tuple[int, ...]]) -> Phase:
        # Weights of the removed units were never trained: slicing only saves a second way to build the network.
        small, _ = slice_network(self.task.build(), kept)
        return Phase("dense", small, self.task.config.epochs, kept=kept)


class UniformDepth(_Uniform):
    """The dense network with fewer residual layers in every stage, as even as the budget allows."""

    def phases(self) -> Phases:
        """One phase."""
        yield self._phase(uniform_depth(self.costs, self.target))


class UniformChannels(_Uniform):
    """The dense network with fewer channels between the layers of its blocks: the same share everywhere."""

    def sites(self, plain: nn.Module) -> tuple[Site, ...]:
        """Return the channels between the layers of blocks."""
        return find_sites(plain, "channel")

    def phases(self) -> Phases:
        """One phase."""
        yield self._phase(uniform_channels(self.costs, self.target))


class UniformWidth(_Uniform):
    """The dense network with fewer channels, by one factor throughout."""

    def phases(self) -> Phases:
        """One phase."""
        small = uniform_width(self.task, round(self.target * self.costs.dense))
        yield _NarrowPhase("dense", small.build(), self.task.config.epochs, own_macs=_macs(small))


@dataclass(kw_only=True)
class _NarrowPhase(Phase):
    own_macs: int

    def macs(self, costs: Costs, decision: Decision | None) -> int:
        """Return the narrow network's own."""
        return self.own_macs


def uniform_depth(costs: Costs, target: float) -> dict[str, tuple[int, ...]]:
    """Return the kept units of each layer site: stages lose their last layers, as evenly as possible, but never all.

    Among stage depths that differ by at most one layer from the same share of each stage, take the one nearest to
    ``target`` times the dense MACs; where several are, first and last stage keep more.
    """
    if not costs.sites:
        raise UserError("uniform depth needs a network with residual layers")
    by_stage: dict[str, list[str]] = defaultdict(list)
    for site in costs.sites:
        by_stage[site.stage].append(site.name)
    stages = list(by_stage.values())

    def kept_at(depths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        each = zip(depths, stages, strict=True)
        return {name: (0,) if place < depth else () for depth, names in each for place, name in enumerate(names)}

    def preference(depths: tuple[int, ...]) -> tuple[float, ...]:
        distance = abs(costs.of(kept_at(depths)) / costs.dense - target)
        # Depths within a hundredth of each other are equals: else the rule about stages would hardly ever decide.
        return round(distance, 2), -depths[0] - depths[-1], distance

    # Every share of layers gives each stage two candidate depths: few enough to try them all.
    candidates: set[tuple[int, ...]] = set()
    for share in {n / len(names) for names in stages for n in range(len(names) + 1)}:
        each = ([max(1, min(len(names), int(share * len(names)) + more)) for more in (0, 1)] for names in stages)
        candidates |= set(itertools.product(*each))
    return kept_at(min(candidates, key=preference))


def uniform_channels(costs: Costs, target: float) -> dict[str, tuple[int, ...]]:
    """Kept units of each channel site: the first so many, by one share, nearest to ``target`` of the dense MACs."""
    # A share that is finer than a channel of the widest site changes no site.
    steps = max(site.units for site in costs.sites)
    options = (
        {site.name: tuple(range(max(1, round(site.units * n / steps)))) for site in costs.sites}
        for n in range(1, steps + 1)
    )
    return min(options, key=lambda kept: abs(costs.of(kept) / costs.dense - target))


def uniform_width(task: Task, macs: float) -> Task:
    """Return the task with the width nearest to ``macs``; raise UserError for networks without a width argument."""
    architecture = architecture_of(task.build())
    if architecture is None or architecture.builder not in _WIDTHS:
        raise UserError(f"uniform_width: {task.config.model} has no width argument; use uniform_channels")
    argument, default = _WIDTHS[architecture.builder]
    full = float(task.config.model_args.get(argument, default))

    def narrowed(step: int) -> Task:
        width = full * step / _WIDTH_STEPS
        # A width is in channels, a width_mult is a factor.
        arguments = {**task.config.model_args, argument: max(width, 1.0) if argument == "width" else width}
        return dataclasses.replace(task, config=task.config.model_copy(update={"model_args": arguments}))

    # MACs grow with the width, so halving the range of widths finds the first that reaches the budget.
    reached = bisect_left(range(_WIDTH_STEPS), macs, lo=1, key=lambda step: _macs(narrowed(step)))
    # Widths round to whole channels, so the one before may be nearer.
    return min(map(narrowed, (max(reached - 1, 1), reached)), key=lambda narrow: abs(_macs(narrow) - macs))


def _macs(task: Task) -> int:
    return count_macs(task.build(), task.input_shape)
