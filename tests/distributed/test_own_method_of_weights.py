"""A method of a user's own, unstructured: scaled initial weights, two views, magnitudes, rewinding, fine-tuning."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from own_methods import assert_same_at_every_stage, every_plan
from pydantic import Field
from torch import Tensor, nn

import dist_prune
from dist_prune.methods import Method, Options, Phase, Phases, Step
from dist_prune.pruning.weight_mask import WeightMask


@dataclass(kw_only=True)
class FixedNormsPhase(Phase):
    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        # Statistics of a rank's part of the batch would make every world size another run.
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()


@dataclass(kw_only=True)
class TwoViewsPhase(FixedNormsPhase):
    density: float
    views: int = 2

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        first, second = step.logits.float().chunk(2)
        return {"consistency": (first - second).square().mean()}

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> WeightMask:
        sizes = {n: w.detach().abs().cpu() for n, w in module.named_parameters() if w.dim() == 4}
        every = torch.cat([size.flatten() for size in sizes.values()])
        smallest = every.kthvalue(round((1 - self.density) * len(every))).values
        return WeightMask({name: size > smallest for name, size in sizes.items()})


@dataclass(kw_only=True)
class RewoundPhase(FixedNormsPhase):
    mask: WeightMask

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> WeightMask:
        return self.mask


class Rewinding(Method):
    class Options(Options):
        kappa: float = Field(0.5, gt=0)
        density: float = Field(0.25, gt=0, lt=1)

    @property
    def epochs(self) -> int:
        return 2 * self.task.config.epochs

    def phases(self) -> Phases:
        supernet, epochs = self.task.build(), self.task.config.epochs
        with torch.no_grad():
            for weight in supernet.parameters():
                weight.mul_(self.options.kappa if weight.dim() > 1 else 1)
        found = yield TwoViewsPhase("views", supernet, epochs, density=self.options.density)
        assert isinstance(found.decision, WeightMask)
        subnet = found.decision.attach(self.task.build())
        yield RewoundPhase("rewound", subnet, epochs, mask=found.decision)


@every_plan
def test_weights_are_masked_in_the_forward_pass_rewound_and_fine_tuned_alike_at_every_stage(
    plan, tmp_path, data_folder
):
    settings = ("augment.crop_padding=1", "method_args.density=0.3")
    summary = assert_same_at_every_stage(Rewinding, tmp_path, plan, *settings)
    assert summary["macs_ratio"] == 1, "dense kernels multiply zeros as well"
    small = dist_prune.load_sliced(tmp_path / "ranks2" / "stage3" / "sliced")
    weights = torch.cat([w.flatten() for w in small.parameters() if w.dim() == 4])
    assert abs(weights.ne(0).float().mean().item() - 0.3) < 0.001
    described = json.loads((tmp_path / "straight" / "stage0" / "mask.json").read_text())
    assert abs(described["totals"]["density"] - 0.3) < 0.001
