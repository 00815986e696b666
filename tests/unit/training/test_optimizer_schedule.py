"""The optimizer's groups and the shape of each learning-rate schedule."""

import math

import pytest
import torch
from torch import nn

from dist_prune import attach_gates, build_model
from dist_prune.config import LrConfig, RunConfig
from dist_prune.gates.gate import Gate
from dist_prune.training.optimizer import build_optimizer, learning_rate


def config(**changes) -> RunConfig:
    return RunConfig(name="test", data="none", model="resnet8", **changes)


def gated() -> nn.Module:
    return attach_gates(build_model("resnet8", num_classes=10, width=4))


def names_of(module, parameters):
    names = {id(p): name for name, p in module.named_parameters()}
    return [names[id(p)] for p in parameters]


def test_sgd_takes_its_figures_from_the_recipe():
    optimizer = build_optimizer(gated(), config(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01))
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.8, True, 0.01)
    assert (group["dampening"], group["maximize"]) == (0, False)


@pytest.mark.parametrize("decay_all", [True, False])
def test_every_parameter_is_trained_exactly_once(decay_all):
    module = gated()
    optimizer = build_optimizer(module, config(decay_gates_and_norms=decay_all))
    trained = [name for group in optimizer.param_groups for name in names_of(module, group["params"])]
    assert sorted(trained) == sorted(name for name, _ in module.named_parameters())


def test_gates_and_norms_may_be_spared_the_weight_decay():
    module = gated()
    decayed, spared = build_optimizer(module, config(decay_gates_and_norms=False)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (5e-4, 0.0)
    expected = {
        f"{name}.{inner}" if name else inner
        for name, m in module.named_modules()
        if isinstance(m, (Gate, nn.BatchNorm2d, nn.BatchNorm1d))
        for inner, _ in m.named_parameters()
    }
    assert set(names_of(module, spared["params"])) == expected
    assert "conv1.weight" in names_of(module, decayed["params"])
    assert "fc.bias" in names_of(module, decayed["params"])


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.BatchNorm1d(2)], ids=["no norm", "only norm"])
def test_there_is_no_empty_group(module):
    groups = build_optimizer(module, config(decay_gates_and_norms=False)).param_groups
    assert [len(group["params"]) for group in groups] == [2]


def rates(epochs=10, steps_per_epoch=4, **changes):
    """The learning rate of each step of a run, and the one that the schedule would give after the last."""
    optimizer = config(**{"lr": 0.5, **changes})
    seen = [learning_rate(optimizer, step, steps_per_epoch, epochs) for step in range(epochs * steps_per_epoch + 1)]
    return seen[:-1], seen[-1]


def torch_rates(build, steps=40, lr=0.5):
    """The rates of one of torch's own schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, seen = build(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_steps_fall_at_the_milestones_and_nowhere_else():
    seen, _ = rates(lr_schedule=LrConfig(kind="steps", milestones=(3, 7), gamma=0.1))
    assert seen == pytest.approx([0.5] * 12 + [0.05] * 16 + [0.005] * 12)
    assert seen == pytest.approx(torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [12, 28], 0.1)))


def test_each_milestone_may_have_a_factor_of_its_own():
    """As in arXiv 2006.07253 (SGD at 0.01, 0.1 from epoch 1 on, then a fifth at each milestone)."""
    schedule = LrConfig(kind="steps", milestones=(1, 5, 8), gamma=(10, 0.2, 0.2))
    seen, _ = rates(lr=0.01, lr_schedule=schedule)
    assert seen == pytest.approx([0.01] * 4 + [0.1] * 16 + [0.02] * 12 + [0.004] * 8)
    with pytest.raises(ValueError, match="3 milestones need as many factors in gamma, not 2"):
        LrConfig(kind="steps", milestones=(1, 5, 8), gamma=(10, 0.2))


def test_cosine_is_half_a_wave_that_ends_at_zero():
    seen, after = rates(lr_schedule=LrConfig(kind="cosine"))
    assert seen == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    assert seen == pytest.approx(torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40)))
    assert after == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("epochs", "share"), [(10, 0.3), (10, 0.25), (10, 0.5), (1, 0.3), (1, 0.01)])
def test_one_cycle_has_the_rates_of_torchs_own_scheduler(epochs, share):
    seen, _ = rates(epochs, lr_schedule=LrConfig(kind="one_cycle", warmup_share=share))
    theirs = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.5, total_steps=4 * epochs, pct_start=share, cycle_momentum=False
        ),
        steps=4 * epochs - 1,
    )
    assert seen[: 4 * epochs - 1] == pytest.approx(theirs)
    assert seen[-1] == pytest.approx(0.5 / 25 / 1e4)


@pytest.mark.parametrize("kind", ["steps", "cosine", "one_cycle"])
def test_a_linear_warmup_precedes_every_schedule(kind):
    schedule = LrConfig(kind=kind, milestones=(5,), warmup_epochs=2)
    seen, _ = rates(lr_schedule=schedule)
    after, _ = rates(epochs=8, lr_schedule=schedule.model_copy(update={"warmup_epochs": 0, "milestones": (3,)}))
    assert seen[:8] == pytest.approx([after[0] * (step + 1) / 8 for step in range(8)])
    assert seen[8:] == pytest.approx(after)


def test_adamw_takes_its_figures_from_the_recipe():
    settings = config(optimizer="adamw", lr=1e-3, betas=(0.8, 0.95), weight_decay=0.02, decay_gates_and_norms=False)
    decayed, spared = build_optimizer(gated(), settings).param_groups
    assert (decayed["lr"], decayed["betas"], decayed["weight_decay"]) == (1e-3, (0.8, 0.95), 0.02)
    assert spared["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="betas"):
        config(optimizer="adamw", betas=(0.8, 1.0))
