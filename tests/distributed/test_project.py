"""What a method puts into weights after a step holds at every ZeRO stage, and is what the checkpoint records."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios
import torch
from ranks import run_ranks
from torch import Tensor, nn

from dist_prune import UserError, distributed
from dist_prune.methods import Phase, Step

SCALES = [f"0.{index}.weight" for index in (1, 3)]


class Clamped(Phase):
    """Scales of norms end every step in [0.4, 0.41]: a bound that SGD would leave at once."""

    def project(self, module: nn.Module, lr: float) -> dict[str, Any]:
        return {name: lambda scale: scale.clamp(0.4, 0.41) for name in SCALES}


class ReadsWeights(Phase):
    """A loss term over weights, which ZeRO 3 cannot serve."""

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        return {"l1": 1e-3 * step.module[0][1].weight.abs().sum()}


class ProjectReadsWeights(Phase):
    """What is read while projections are chosen is empty at ZeRO 3; what they are given is whole."""

    def project(self, module: nn.Module, lr: float) -> dict[str, Any]:
        largest = module[0][1].weight.abs().max()
        return {name: lambda scale: scale.clamp(max=largest) for name in SCALES}


class Misshapen(Phase):
    """A value that would be broadcast over the whole weight."""

    def project(self, module: nn.Module, lr: float) -> dict[str, Any]:
        return {SCALES[0]: lambda scale: scale.mean()}


def network() -> nn.Module:
    torch.manual_seed(3)
    # 5 and 7 channels: the ranks do not divide what ZeRO 3 partitions
    convolutions = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*convolutions), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 10))


def steps_of(phase_class: type[Phase], stage: int, steps: int = 3) -> Any:
    """The state after some steps, and what the module then computes; or the message of a refusal."""
    from dist_prune.training.step import train_step

    phase, ranks = phase_class("toy", network(), 4), distributed.world_size()
    engine = scenarios.engine_for(phase, stage, micro=8 // ranks)
    engine.module.eval()  # so that the world size changes nothing
    batch = scenarios.share(*scenarios.batch(8), [8 // ranks] * ranks)
    try:
        for _ in range(steps):
            engine.set_lr(0.5)
            train_step(engine, phase, [batch], epoch=0.0)
    except UserError as error:
        return str(error)
    # A step of learning rate 0 changes no weight, but shows those that train: ZeRO copies them into the module.
    engine.set_lr(0.0)
    engine.backward(engine.forward(batch[0]).sum() * 0.0)
    engine.step()
    with torch.no_grad():
        logits = engine.forward(scenarios.batch(8)[0])
    found = engine.snapshot().weights, logits
    engine.close()
    return found


@pytest.fixture(scope="module")
def expected():
    return run_ranks(1, steps_of, Clamped, 0)[0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_projected_weights_train_and_are_recorded_alike_at_every_stage(ranks, stage, expected):
    for weights, logits in run_ranks(ranks, steps_of, Clamped, stage):
        for name in SCALES:
            assert weights[name].min() >= 0.4
            assert weights[name].max() <= 0.41
        torch.testing.assert_close(weights, expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-5)
        # The module computes with what the checkpoint says.
        alone = network().eval()
        alone.load_state_dict(weights)
        with torch.no_grad():
            torch.testing.assert_close(alone(scenarios.batch(8)[0]), logits, rtol=1e-4, atol=1e-5)


def test_a_loss_term_that_reads_weights_works_where_ranks_hold_them_and_is_refused_at_zero_3():
    with_term, without = (run_ranks(1, steps_of, kind, 2)[0][0] for kind in (ReadsWeights, Phase))
    assert not torch.equal(with_term[SCALES[0]], without[SCALES[0]])
    (said,) = run_ranks(1, steps_of, ReadsWeights, 3)
    assert said.startswith("the method reads the network's weights outside of the forward pass")


def test_weights_that_are_read_while_projections_are_chosen_are_refused_at_zero_3_too():
    (said,) = run_ranks(1, steps_of, ProjectReadsWeights, 3)
    assert said.startswith("the method reads the network's weights outside of the forward pass")
    assert not isinstance(run_ranks(1, steps_of, ProjectReadsWeights, 2)[0], str)


def test_a_projection_of_another_shape_is_refused_by_both_shapes():
    (said,) = run_ranks(1, steps_of, Misshapen, 0)
    assert said == "project gives '0.1.weight' the shape (), it has (5,)"


class Mean(Phase):
    """A term that is a mean over this rank's images."""

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        return {"squares": step.logits.square().mean()}


def losses_of(phase_class: type[Phase]) -> dict[str, float]:
    from dist_prune.training.step import train_step

    ranks = distributed.world_size()
    engine = scenarios.engine_for(phase_class("toy", network(), 4), 0, micro=8 // ranks)
    engine.module.eval()
    batch = scenarios.share(*scenarios.batch(8), [8 // ranks] * ranks)
    found = train_step(engine, phase_class("toy", engine.module, 4), [batch], epoch=0.0).losses
    engine.close()
    return found


def test_a_loss_term_is_recorded_as_its_mean_over_ranks():
    (alone,) = run_ranks(1, losses_of, Mean)
    for found in run_ranks(2, losses_of, Mean):
        assert found == pytest.approx(alone, rel=1e-5)
