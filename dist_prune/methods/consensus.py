"""Consensus gating (arXiv 2302.10798): gates and weights learn together, in one pass, and agree on a mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune.config import RunConfig
from dist_prune.consensus import Mask, collapse, consensus_mask, masked
from dist_prune.gates import attach_gates
from dist_prune.measure import Costs
from dist_prune.methods.base import Method, Phase, Step
from dist_prune.regularizers import activation, macs_distance, polarization


class Consensus(Method):
    """Train the gated network; its consensus mask is the result."""

    def phases(self, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[Phase]:
        """One phase: everything is learned at once."""
        config = self.task.config
        gates = config.gates
        module = attach_gates(self.task.build(), gates.kind, gates.head, gates.hidden, gates.open_bias)
        yield GatedPhase(
            "gated",
            module,
            config.epochs,
            label_smoothing=config.label_smoothing,
            config=config,
            costs=self.task.costs(),
        )


@dataclass(kw_only=True)
class GatedPhase(Phase):
    """The phase of a gated network: equation 10, and a distance to the MACs budget if there is one."""

    config: RunConfig
    costs: Costs

    @property
    def has_gates(self) -> bool:
        """Gated networks decide per sample."""
        return True

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """Polarization, activation and MACs terms that the recipe gives a weight at this moment."""
        config, means = self.config, step.means
        assert means is not None
        weights = {
            "polarization": config.polarization.at(step.epoch),
            "activation": config.activation.at(step.epoch),
            "macs": config.target_weight.at(step.epoch) if config.target_macs else 0.0,
        }
        terms = {}
        if weights["polarization"]:
            terms["polarization"] = polarization(means, weights["polarization"])
        if weights["activation"]:
            terms["activation"] = activation(means, weights["activation"])
        if weights["macs"] and config.target_macs:
            unit_macs = torch.tensor(list(self.costs.per_unit.values()), device=means.values.device).float()
            fixed = self.costs.fixed
            terms["macs"] = macs_distance(means, unit_macs, fixed, config.target_macs, weights["macs"])
        return terms

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
