"""Freezing: decided gates are no longer evaluated, nor are the branches that they close."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from unit_helpers import images, shaken, undecided

from dist_prune import attach_gates, build_model, consensus_mask, gate_means, macs_budget
from dist_prune.gates.consensus import masked
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.wrappers import gated_modules, gates_of, sites
from dist_prune.pruning.mask import UnitMask


def gated(kind: str = "layer") -> nn.Module:
    return undecided(attach_gates(shaken(build_model("resnet14", num_classes=10, width=8)), kind))


def watch(model: nn.Module, freezer: Freezer, means: list[float], steps: int) -> None:
    for _ in range(steps):
        freezer.update(model, torch.tensor(means))


def constants(model: nn.Module) -> list[int | None]:
    return [gate.constant for gate in gates_of(model).values()]


def test_a_unit_is_decided_when_all_samples_of_so_many_batches_in_a_row_agree():
    model = gated()
    freezer = Freezer(model, patience=3)
    watch(model, freezer, [0, 1, 0, 0.5, 1, 1e-6], steps=2)
    assert constants(model) == [None] * 6
    watch(model, freezer, [0, 1, 0.1, 0.5, 1, 1e-6], steps=1)
    assert constants(model) == [0, 1, None, None, 1, None]
    assert not freezer.all_decided
    watch(model, freezer, [0, 1, 0, 1, 1, 0], steps=3)
    assert constants(model) == [0, 1, 0, 1, 1, 0]
    assert freezer.all_decided


def test_open_units_are_not_decided_before_their_time():
    model = gated()
    freezer = Freezer(model, patience=2)
    for _ in range(5):
        freezer.update(model, torch.tensor([1.0, 0, 1, 1, 1, 1]), open_counts=False)
    assert constants(model) == [None, 0, None, None, None, None]


def test_thawed_units_decide_anew():
    model = gated()
    freezer = Freezer(model, patience=2, thaw_after=3)
    seen = []
    for _ in range(9):
        freezer.update(model, torch.zeros(6))
        seen.append(constants(model)[0])
    assert seen == [None, 0, 0, 0, None, None, 0, 0, 0]


def test_a_freezer_continues_from_its_state():
    model, other = gated(), gated()
    freezer, resumed = Freezer(model, patience=3), Freezer(other, patience=3)
    watch(model, freezer, [0, 1, 0, 1, 0, 1], steps=2)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(freezer.state_dict())
    resumed.apply(other)
    assert constants(other) == [None] * 6
    watch(other, resumed, [0, 1, 0, 1, 0.5, 1], steps=1)
    assert constants(other) == [0, 1, 0, 1, None, 1]
    model.load_state_dict(other.state_dict())
    freezer.load_state_dict(resumed.state_dict())
    freezer.apply(model)
    assert constants(model) == constants(other)


@pytest.mark.parametrize("kind", ["layer", "channel"])
@pytest.mark.parametrize("train", [True, False])
def test_a_frozen_network_computes_what_the_network_with_these_fixed_gates_does(kind, train):
    model = gated(kind)
    units = sum(site.units for site in sites(model))
    opened = torch.rand(units) < 0.6
    first = 0
    for site in sites(model):  # a channel site keeps a channel
        opened[first] |= not site.may_be_empty
        first += site.units
    parts = opened.split([site.units for site in sites(model)])
    kept = {s.name: part.nonzero().flatten().tolist() for s, part in zip(sites(model), parts, strict=True)}
    fixed, evaluated = masked(model, UnitMask.of(kept, sites(model))).train(train), copy.deepcopy(model).train(train)
    for gate, part in zip(gates_of(evaluated).values(), parts, strict=True):
        nn.init.zeros_(gate.last.weight)  # decides the same for every sample, and is computed
        gate.last.bias.data = part * 10.0 - 5
    freezer = Freezer(model, patience=1)
    freezer.update(model, opened.float())
    x = images(8)
    expected = evaluated(x)
    torch.testing.assert_close(model.train(train)(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fixed(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gate_means(model).values, opened.float())
    assert consensus_mask(model, [x]).kept == {name: tuple(units) for name, units in kept.items()}


def test_neither_gating_modules_nor_closed_branches_are_computed_or_get_gradients():
    model = gated()
    freezer = Freezer(model, patience=1)
    freezer.update(model, torch.tensor([1.0, 0, 0.5, 1, 0, 1]))
    called = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    model(images(4)).sum().backward()
    for number, (name, wrapper) in enumerate(gated_modules(model)):
        branch, gating = f"{name}.inner.conv1" in called, f"{name}.gate.body" in called
        assert (branch, gating) == (number not in (1, 4), number == 2)
        assert (wrapper.inner.conv1.weight.grad is None) == (number in (1, 4))


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.vit_b_16(image_size=32, num_classes=10),
        lambda: torchvision.models.convnext_tiny(num_classes=10),
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
    ],
    ids=["vit", "convnext", "resnet", "mobilenet"],
)
def test_closed_branches_of_every_family_are_left_out(build):
    torch.manual_seed(1)
    model = attach_gates(build()).eval()
    reference = copy.deepcopy(model)
    for wrapper in dict(gated_modules(reference)).values():
        nn.init.constant_(wrapper.gate.last.bias, -5.0)  # closed, and computed
    freezer = Freezer(model, patience=1)
    freezer.update(model, torch.zeros(len(sites(model))))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), reference(x))


def test_channels_that_are_all_open_cost_nothing_once_frozen():
    model = gated("channel")
    gates = list(gates_of(model).values())
    for gate in gates:
        gate.freeze(torch.ones(gate.units, dtype=torch.bool))
    assert constants(model) == [1] * len(gates)
    operations, todo = set(), [model.train()(images(2)).sum().grad_fn]
    while todo:
        node = todo.pop()
        operations.add(type(node).__name__)
        todo += [before for before, _ in node.next_functions if before is not None]
    assert "_ScaleChannelsBackward" not in operations
    gates[0].freeze(torch.arange(gates[0].units) > 0)
    assert constants(model)[0] is None


def test_a_network_under_a_budget_and_a_freezer_loads_strictly_into_one_without():
    """An own loop saves the model as always; budget and freezer have a state of their own."""
    model = gated()
    Freezer(model, patience=2), macs_budget(model, (3, 16, 16), 0.7)
    gated().load_state_dict(model.state_dict(), strict=True)
