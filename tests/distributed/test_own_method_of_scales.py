"""A method of a user's own, structured: sparse batch-norm scales, a threshold, slicing, fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from own_methods import assert_same_at_every_stage, every_plan
from torch import Tensor, nn

import dist_prune
from dist_prune.config import OptimizerConfig
from dist_prune.gates.insertion import find_sites
from dist_prune.methods import Method, Options, Phase, Phases, PrunedPhase, Transition
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import slice_network


@dataclass(kw_only=True)
class ScalesPhase(Phase):
    sites: tuple[Site, ...]
    shrinkage: float
    threshold: float

    def scales(self) -> dict[str, str]:
        """The scale of the norm in each site."""
        norms = {s.name: p.module for s in self.sites for p in s.slices if p.dim == "channels"}
        return {site: f"{norm}.weight" for site, norm in norms.items()}

    def before_forward(self, module: nn.Module, step: int, first_sample: int, epoch: float) -> None:
        # Statistics of a rank's part of the batch would make every world size another run.
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()

    def project(self, module: nn.Module, lr: float) -> Mapping[str, Callable[[Tensor], Tensor]]:
        def shrink(scale: Tensor) -> Tensor:
            return (scale - self.shrinkage * scale.sign()).clamp(0, 1)

        return dict.fromkeys(self.scales().values(), shrink)

    def vote(self, module: nn.Module, batches: Iterable[Any]) -> UnitMask:
        weights = dict(module.named_parameters())
        kept = {site: weights[name].gt(self.threshold).nonzero() for site, name in self.scales().items()}
        return UnitMask.of({site: units.flatten().tolist() for site, units in kept.items()}, self.sites)


class FineTunedPhase(PrunedPhase):
    before_forward = ScalesPhase.before_forward


class SparseScales(Method):
    class Options(Options):
        shrinkage: float = 0.01
        threshold: float = 0.5

    @property
    def epochs(self) -> int:
        return 2 * self.task.config.epochs

    def sites(self, plain: nn.Module) -> tuple[Site, ...]:
        return find_sites(plain, "channel", "between")

    def phases(self) -> Phases:
        module, epochs = self.task.build(), self.task.config.epochs
        options = dict(self.options)
        found = yield ScalesPhase("scales", module, epochs, sites=self.sites(module), **options)
        mask = found.decision
        small, origins = slice_network(found.module, mask.kept)
        tuning = OptimizerConfig(optimizer="adamw", lr=1e-3)
        inherited = Transition(origins, keep_optimizer=False)
        yield FineTunedPhase("tuned", small, epochs, mask.kept, inherited, optimizer=tuning, mask=mask)


@every_plan
def test_scales_are_clamped_thresholded_pruned_and_fine_tuned_alike_at_every_stage(plan, tmp_path, data_folder):
    settings = ("lr=0.3", "method_args.shrinkage=0.02", "method_args.threshold=0.885")
    summary = assert_same_at_every_stage(SparseScales, tmp_path, plan, *settings)
    small = dist_prune.load_sliced(tmp_path / "ranks2" / "stage3" / "sliced")
    norms = [small.layer1[0].bn1, small.layer2[0].bn1, small.layer3[0].bn1]
    assert [norm.num_features for norm in norms] == [2, 6, 16]
    assert 0.7 < summary["macs_ratio"] < 0.9
