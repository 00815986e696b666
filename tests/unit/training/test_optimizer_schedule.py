"""The optimizer's groups and the shape of each learning-rate schedule."""

import math

import pytest
import torch
from torch import nn

from dist_prune import attach_gates, build_model
from dist_prune.config import LrConfig, RunConfig
from dist_prune.gates.gate import Gate
from dist_prune.training.optimizer import build_optimizer, build_scheduler


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
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (
        0.3,
        0.8,
        True,
        0.01,
    )
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
    weight = nn.Parameter(torch.zeros(1))
    settings = config(**{"lr": 0.5, **changes})
    optimizer = torch.optim.SGD([weight], lr=settings.lr, momentum=settings.momentum)
    scheduler = build_scheduler(optimizer, settings, epochs, steps_per_epoch)
    seen = []
    for _ in range(epochs * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen, optimizer.param_groups[0]["lr"]


def test_steps_fall_at_the_milestones_and_nowhere_else():
    seen, _ = rates(lr_schedule=LrConfig(kind="steps", milestones=(3, 7), gamma=0.1))
    assert seen == pytest.approx([0.5] * 12 + [0.05] * 16 + [0.005] * 12)


def test_cosine_is_half_a_wave_that_ends_at_zero():
    seen, after = rates(lr_schedule=LrConfig(kind="cosine"))
    assert seen == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    assert after == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_one_cycle_rises_to_the_recipes_rate_and_ends_near_zero(share):
    seen, _ = rates(lr_schedule=LrConfig(kind="one_cycle", warmup_share=share))
    top = seen.index(max(seen))
    assert top == 40 * share - 1
    assert max(seen) == pytest.approx(0.5)
    assert seen[0] == pytest.approx(0.5 / 25)
    assert seen[: top + 1] == sorted(seen[: top + 1])
    assert seen[top:] == sorted(seen[top:], reverse=True)
    assert seen[-1] < 1e-4 * 0.5


@pytest.mark.parametrize("kind", ["steps", "cosine", "one_cycle"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_recipe_owns_the_momentum_whatever_the_schedule(kind, momentum):
    weight = nn.Parameter(torch.zeros(1))
    settings = config(momentum=momentum, lr_schedule=LrConfig(kind=kind))
    optimizer = torch.optim.SGD([weight], lr=settings.lr, momentum=settings.momentum)
    scheduler = build_scheduler(optimizer, settings, 10, 4)
    seen = set()
    for _ in range(40):
        seen.add(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert seen == {momentum}


@pytest.mark.parametrize("kind", ["steps", "cosine", "one_cycle"])
def test_a_schedule_goes_on_where_its_state_was_taken(kind):
    settings = config(lr_schedule=LrConfig(kind=kind, milestones=(3, 7)))

    def start():
        optimizer = torch.optim.SGD(
            [nn.Parameter(torch.zeros(1))], lr=settings.lr, momentum=settings.momentum
        )
        return optimizer, build_scheduler(optimizer, settings, 10, 4)

    optimizer, scheduler = start()
    for _ in range(17):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = start()
    resumed.load_state_dict(dict(scheduler.state_dict()))
    now = optimizer.param_groups[0]  # what the engine stores beside the schedule
    resumed_optimizer.param_groups[0].update(lr=now["lr"], momentum=now["momentum"])
    for _ in range(23):
        ours, theirs = resumed_optimizer.param_groups[0], optimizer.param_groups[0]
        assert ours["lr"] == pytest.approx(theirs["lr"], rel=1e-12)
        assert ours["momentum"] == theirs["momentum"]
        for o, s in ((optimizer, scheduler), (resumed_optimizer, resumed)):
            o.step()
            s.step()


def test_every_group_follows_the_schedule():
    module = gated()
    settings = config(lr=0.5, decay_gates_and_norms=False, lr_schedule=LrConfig(kind="one_cycle"))
    optimizer = build_optimizer(module, settings)
    scheduler = build_scheduler(optimizer, settings, 2, 5)
    for _ in range(9):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert first == second
        optimizer.step()
        scheduler.step()
