"""Consensus gating (arXiv 2302.10798): gates and weights learn together, in one pass, and agree on a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dist_prune.config import RunConfig
from dist_prune.consensus import Mask, collapse, consensus_mask, masked
from dist_prune.gates import Budget, Moment, Timeline, attach_gates, follow_logits, set_moment
from dist_prune.methods.base import Method, Phase, Step
from dist_prune.regularizers import activation, polarization


class Consensus(Method):
    """Train the gated network; its consensus mask is the result."""

    def phases(self, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[Phase]:
        """One phase: everything is learned at once."""
        config, budget = self.task.config, None
        options = config.gates.model_dump(exclude={"temperature"})
        module = attach_gates(self.task.build(), input_shape=self.task.input_shape, **options)
        if config.target_macs is not None:
            settings = config.budget.model_dump()
            allow_empty = settings.pop("allow_empty")
            timeline = Timeline(**settings)
            budget = Budget(module, self.task.costs(), config.target_macs, timeline, allow_empty)
        smoothing = config.label_smoothing
        yield GatedPhase(
            "gated", module, config.epochs, label_smoothing=smoothing, config=config, budget=budget
        )


@dataclass(kw_only=True)
class GatedPhase(Phase):
    """The phase of a gated network: equation 10, under a MACs budget if there is one."""

    config: RunConfig
    budget: Budget | None = None

    @property
    def has_gates(self) -> bool:
        """Gated networks decide per sample."""
        return True

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Polarization and activation terms that the recipe or the budget gives a weight at this moment."""
        assert step.means is not None
        polar, active = self._polarization(step.epoch), self.config.activation.at(step.epoch)
        means, terms = step.means[:2], {}
        if polar:
            terms["polarization"] = polarization(means, polar)
        if active:
            terms["activation"] = activation(means, active)
        return terms

    def _polarization(self, epoch: float) -> float:
        if self.config.polarization is not None:
            return self.config.polarization.at(epoch)
        return self.budget.polarization_weight(epoch / self.epochs) if self.budget else 1.0

    def resumed(self, module: nn.Module) -> None:
        """The budget goes on from the gates' buffers."""
        if self.budget is not None:
            self.budget.resume(module)

    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        """Stochastic heads learn what their noise is keyed by."""
        temperature = self.config.gates.temperature.at(epoch)
        set_moment(module, Moment(self.config.seed, step, first_sample, temperature))

    def after_step(self, module: nn.Module, logits: Tensor, epoch: float) -> None:
        """Heads see the mean logits, and the budget moves the gates' thresholds."""
        follow_logits(module, logits)
        if self.budget is not None:
            self.budget.update(module, logits, epoch / self.epochs)

    def decide(self, module: nn.Module, batches: Iterable[Any]) -> Mask:
        """The consensus mask over ``batches``."""
        return consensus_mask(module, batches)

    def fixed(self, module: nn.Module, mask: Mask | None) -> nn.Module:
        """The gated network with its gates fixed to the mask."""
        assert mask is not None
        return masked(module, mask)

    def small(self, module: nn.Module, mask: Mask | None) -> nn.Module:
        """The collapsed network."""
        assert mask is not None
        return collapse(module, mask)
