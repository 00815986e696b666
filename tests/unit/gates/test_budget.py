"""The MACs budget: which units are open when, and how gates learn their importance."""

import math

import pytest
import torch
from budget_helpers import PLACES, SHAPE, TARGET, open_in_reference, options, units
from torch import nn
from unit_helpers import images, shaken, undecided

from dist_prune import UserError, attach_gates, build_model
from dist_prune.gates.budget import Budget, Timeline, macs_budget, margins
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.means import gate_means
from dist_prune.gates.selection import protected_groups
from dist_prune.gates.wrappers import gated_modules, gates_of
from dist_prune.pruning.costs import Costs

LINE = Timeline(warmup_end=0.2, prune_start=0.4, prune_end=0.6, polarize_end=0.8)


def gated_at(place: str) -> nn.Module:
    plain = shaken(build_model("resnet14", num_classes=10, width=8))
    return undecided(attach_gates(plain, **options(place)))


def budget_at(place: str, target: float = TARGET) -> tuple[nn.Module, Budget]:
    gated = gated_at(place)
    return gated, macs_budget(gated, SHAPE, target, LINE)


def state(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The thresholds of all units, and the gates' ste_window."""
    gates = [wrapper.gate for _, wrapper in gated_modules(model)]
    return torch.cat([gate.threshold for gate in gates]).clone(), torch.stack(
        [gate.ste_window for gate in gates]
    ).clone()


@pytest.mark.parametrize(
    ("progress", "share"), [(0, 1), (0.4, 1), (0.45, 0.925), (0.5, 0.85), (0.6, 0.7), (0.9, 0.7), (1, 0.7)]
)
def test_the_macs_allowance_falls_in_a_straight_line_from_everything_to_the_target(progress, share):
    assert budget_at("layer")[1].macs_allowance(progress) == pytest.approx(share)


@pytest.mark.parametrize(("progress", "ramp"), [(0, 0), (0.6, 0), (0.65, 0.25), (0.7, 0.5), (0.8, 1), (1, 1)])
def test_polarization_rises_after_the_target_is_met_and_makes_up_for_the_number_of_units(progress, ramp):
    (_, few), (_, many) = budget_at("layer"), budget_at("between")
    full = few.polarization_weight(1.0)
    assert full > 0
    assert few.polarization_weight(progress) == pytest.approx(full * ramp)
    assert many.polarization_weight(progress) == pytest.approx(full * ramp * units(many.costs) / 6)


def importance_in_reference(costs: Costs, logits: torch.Tensor) -> torch.Tensor:
    """The logit per MAC."""
    shares = costs.unit_shares().float()
    return logits / (shares / shares.mean())


@pytest.mark.parametrize("place", PLACES)
def test_pruned_units_stay_pruned_whatever_their_importance(place):
    gated, budget = budget_at(place)
    pruned = torch.zeros(units(budget.costs), dtype=torch.bool)
    before = torch.randn(len(pruned))
    for progress in torch.linspace(0.41, 1, 30).tolist():
        logits = torch.randn(len(pruned))
        budget.update(gated, logits, progress)
        expected, before = (logits if progress < 0.411 else 2 * logits - before), logits
        closed = expected <= state(gated)[0]
        assert (closed | ~pruned).all()
        pruned = closed
    assert pruned.any()


def test_of_units_of_equal_logits_the_most_expensive_is_pruned_first():
    gated = attach_gates(build_model("resnet8", num_classes=10))
    budget = macs_budget(gated, (3, 32, 32), 0.3, LINE)
    shares = budget.costs.unit_shares()
    assert shares[0] > shares[1] > shares[2]
    seen = []
    for macs_allowance in (1 - shares.cumsum(0)[:2]).tolist():
        budget.update(gated, torch.full((3,), 0.1), 0.4 + 0.2 * (1 - macs_allowance) / 0.7)
        seen.append((state(gated)[0] > 0.1).tolist())
    assert seen == [[True, False, False], [True, True, False]]


@pytest.mark.parametrize("closed", [[0, 1], [2], [], [0, 1, 2, 3]])
def test_a_gap_lies_between_the_importance_of_open_and_closed_units(closed):
    importance, gone = torch.tensor([3.0, -1.0, 0.5, 0.75]), torch.zeros(4, dtype=torch.bool)
    gone[closed] = True
    found = margins(importance, gone)
    gap = 2.0  # half of the range of the importance
    assert torch.equal(found > 0, ~gone)
    assert (found.abs() >= gap / 2).all()
    opened = ~gone
    assert torch.allclose(found[opened] - importance[opened], found[opened][:1] - importance[opened][:1]), (
        "one shift for all"
    )


def test_importance_is_averaged_over_the_latest_steps():
    gated, budget = budget_at("layer")
    steps = [torch.randn(6) for _ in range(3)]
    expected, latest = None, None
    for number, logits in enumerate(steps):
        budget.update(gated, logits, 0.25 + 0.01 * number)
        ahead = logits if latest is None else 2 * logits - latest
        importance, latest = importance_in_reference(budget.costs, ahead), logits
        expected = importance if expected is None else expected + (1 - math.exp(-0.01 / 0.03)) * (importance - expected)
    found = budget.state_dict()["importance"].float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_gates_are_held_open_before_the_warm_up_ends(place):
    gated, budget = budget_at(place)
    budget.update(gated, torch.randn(units(budget.costs)), 0.19)
    gated.train()(images(8)).sum().backward()
    assert gate_means(gated).values.min() == 1
    assert not any(wrapper.gate.last.bias.grad.any() for _, wrapper in gated_modules(gated))


def test_a_new_budget_holds_all_gates_open_until_the_first_step():
    gated, _ = budget_at("between")
    gated.train()(images(8))
    assert gate_means(gated).values.min() == 1


@pytest.mark.parametrize(
    ("progress", "drops"), [(0, False), (0.19, False), (0.2, True), (0.5, True), (0.6, False), (1, False)]
)
def test_units_are_dropped_at_random_while_importance_is_learned_also_after_a_resume(progress, drops):
    gated, budget = budget_at("between")
    budget.update(gated, torch.randn(units(budget.costs)), progress)
    again, resumed = budget_at("between")
    again.load_state_dict(gated.state_dict())
    resumed.load_state_dict(budget.state_dict())
    resumed.apply(again)
    for model in (gated, again):
        assert all((wrapper.gate.random_drop > 0) == drops for _, wrapper in gated_modules(model))


@pytest.mark.parametrize("progress", [0.2, 0.3, 0.4])
def test_gates_are_open_after_the_warm_up_and_every_unit_learns(progress):
    gated, budget = budget_at("between")
    logits = torch.randn(units(budget.costs))
    budget.update(gated, logits, progress)
    thresholds, ste_window = state(gated)
    assert (logits > thresholds).all()
    assert ((logits - thresholds).abs() <= ste_window[0]).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("progress", [0.5, 0.6, 0.7, 1.0])
def test_an_update_opens_units_within_the_allowance_and_closes_the_others(place, progress):
    gated, budget = budget_at(place)
    x = images(16)
    with torch.no_grad():
        gated(x)
        logits = gate_means(gated).logits
        budget.update(gated, logits, progress)
        gated(x)
    opened = logits > state(gated)[0]
    nothing = torch.zeros(len(logits), dtype=torch.bool)
    importance, macs_allowance = (importance_in_reference(budget.costs, logits), budget.macs_allowance(progress))
    groups = protected_groups(budget.costs, 0.7, allow_empty=False)
    assert torch.equal(opened, open_in_reference(budget.costs, importance, nothing, macs_allowance, groups))
    for _, wrapper in gated_modules(gated):
        decisions, each = wrapper.gate.pop_decisions()
        assert torch.equal(decisions, (each > wrapper.gate.threshold).float())


def test_the_window_follows_the_logits_until_the_target_is_met_and_stays_from_then_on():
    gated, budget = budget_at("layer")
    logits, weight_at_window_1 = (torch.tensor([5.0, -3.0, 1.0, 0.5, 2.0, 1.5]), budget.polarization_weight(1.0))
    budget.update(gated, logits, 0.5)
    thresholds, first = state(gated)
    assert (first == first[0]).all()
    assert first[0].item() == pytest.approx(2 * (logits - thresholds).abs().max().item())
    budget.update(gated, 30 * torch.randn(6), 0.7)
    assert torch.equal(state(gated)[1], first)
    assert budget.polarization_weight(1.0) == pytest.approx(weight_at_window_1 * first[0].item())


@pytest.mark.parametrize("progress", [0.5, 0.7, 1.0])
def test_thresholds_are_for_the_logits_that_the_last_two_steps_let_expect(progress):
    """Bids that all rise alike say nothing: thresholds must rise as fast as the logits."""
    gated, budget = budget_at("between")
    first = torch.randn(units(budget.costs))
    unit_costs = first / importance_in_reference(budget.costs, first)
    for step in range(3):
        budget.update(gated, first + 5 * step * unit_costs, progress)
    (_, other), still = budget_at("between"), budget_at("between")[0]
    other.update(still, first + 15 * unit_costs, progress)
    torch.testing.assert_close(state(gated)[0], state(still)[0])


def test_a_budget_continues_from_its_state():
    gated, budget = budget_at("layer")
    for progress in (0.54, 0.55):
        budget.update(gated, 9 * torch.randn(6), progress)
    again, resumed = budget_at("layer")
    again.load_state_dict(gated.state_dict())
    resumed.load_state_dict(budget.state_dict())
    resumed.apply(again)
    assert resumed.polarization_weight(0.9) == pytest.approx(budget.polarization_weight(0.9))
    logits = torch.randn(6)
    for model, its in ((gated, budget), (again, resumed)):
        its.update(model, logits, 0.75)
    assert all(torch.equal(a, b) for a, b in zip(state(gated), state(again), strict=True))


def test_units_that_have_left_stay_out_when_frozen_gates_are_evaluated_again():
    gated, budget = budget_at("layer")
    freezer, gates = Freezer(gated, patience=3, thaw_after=4), list(gates_of(gated).values())
    logits, pruned, evaluated_again = torch.randn(len(gates)), torch.zeros(len(gates), dtype=torch.bool), 0
    for step in range(100):
        evaluated = torch.tensor([gate.constant is None for gate in gates])
        frozen = torch.tensor([float(gate.constant or 0) for gate in gates])
        means = torch.where(evaluated, (logits > torch.cat([gate.threshold for gate in gates])).float(), frozen)
        assert not means[pruned].any(), f"step {step}: a pruned layer is open"
        assert means.any()
        evaluated_again += int(evaluated[pruned].any())
        # A frozen gate says what it has decided where others say their logits.
        budget.update(gated, torch.where(evaluated, logits, frozen), step / 100)
        pruned = ~torch.cat([gate.threshold < logits[n] for n, gate in enumerate(gates)])
        freezer.update(gated, means, open_counts=step > 60)
    assert pruned.any()
    assert evaluated_again > 20


def test_heads_that_ignore_thresholds_are_refused():
    gated = attach_gates(build_model("resnet8", num_classes=10), head="bernoulli")
    with pytest.raises(UserError, match="half of the samples"):
        macs_budget(gated, SHAPE, 0.5)


def test_a_budget_that_closes_nothing_leaves_all_units_open():
    gated = attach_gates(build_model("resnet8", num_classes=10))  # one layer a stage, all of them protected
    budget = macs_budget(gated, SHAPE, 0.995, LINE)
    for progress in (0.3, 0.5, 0.7, 1.0):
        logits = torch.randn(3)
        budget.update(gated, logits, progress)
        assert (logits > state(gated)[0]).all()
