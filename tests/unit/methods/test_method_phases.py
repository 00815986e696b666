"""Methods: what their phases train, which terms their loss has, and what remains at the end."""

import pytest
import torch
import torch.nn.functional as F
from unit_helpers import images, mask_closing, undecided

from dist_prune import UserError, activation, gate_means, polarization
from dist_prune.config import BudgetConfig, GatesConfig, RunConfig, override
from dist_prune.gates.wrappers import gated_modules
from dist_prune.measure.macs import count_macs, count_parameters
from dist_prune.methods import METHODS, Method, Options, Phase, PhaseResult, Step, Task, next_phase
from dist_prune.pruning.mask import UnitMask

SHAPE = (3, 16, 16)


def task(**changes) -> Task:
    fields = {"name": "test", "data": "none", "model": "resnet14", "model_args": {"width": 8}, "epochs": 3}
    return Task(RunConfig(**{**fields, **changes}), 10, SHAPE)


def method_of(the_task: Task) -> Method:
    return METHODS[the_task.config.method](the_task)


def only_phase(the_task: Task) -> Phase:
    return next(method_of(the_task).phases())


def step_at(phase: Phase, epoch: float) -> Step:
    x, labels = images(8), torch.arange(8)
    logits = phase.module.eval()(x)
    means = gate_means(phase.module) if phase.has_gates else None
    return Step(phase.module, x, labels, logits, means, epoch)


def test_the_default_method_of_a_recipe_exists():
    assert RunConfig.model_fields["method"].default in METHODS


def test_the_network_follows_from_the_recipe_the_data_and_the_seed():
    first, same, other = task(seed=4).build(), task(seed=4).build(), task(seed=5).build()
    assert (first.conv1.in_channels, first.fc.out_features, first.conv1.out_channels) == (3, 10, 8)
    assert torch.equal(first.fc.weight, same.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_costs_are_those_of_the_plain_network():
    costs, plain = method_of(task()).costs, task().build()
    assert costs.dense == count_macs(plain, SHAPE)
    assert costs.parameters == count_parameters(plain)
    assert [site.name for site in costs.sites] == [f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1)]


def test_dense_trains_the_plain_network_and_returns_it():
    phase = only_phase(task(method="dense"))
    assert (phase.name, phase.epochs, phase.has_gates) == ("dense", 3, False)
    assert list(gated_modules(phase.module)) == []
    assert phase.loss_terms(step_at(phase, 1.0)) == {}
    assert phase.vote(phase.module, []) is None
    assert phase.masked(phase.module, None) is phase.module
    assert phase.sliced(phase.module, None) is phase.module
    assert phase.macs(method_of(task()).costs, None) == method_of(task()).costs.dense


def test_consensus_trains_a_gated_network_in_one_phase():
    phase = only_phase(task(gates=GatesConfig(hidden=5, open_bias=0.25)))
    assert (phase.name, phase.epochs, phase.has_gates) == ("gated", 3, True)
    gates = [wrapper.gate for _, wrapper in gated_modules(phase.module)]
    assert len(gates) == 6
    assert {gate.body[0].out_features for gate in gates} == {5}
    assert {gate.last.bias.item() for gate in gates} == {0.25}


def test_gates_do_not_change_the_weights_that_a_seed_gives():
    gated, plain = only_phase(task()).module, task().build()
    assert torch.equal(gated.layer2[0].inner.conv1.weight, plain.layer2[0].conv1.weight)
    assert torch.equal(gated.fc.weight, plain.fc.weight)


@pytest.mark.parametrize("target", [None, 0.5])
def test_the_loss_is_equation_10(target):
    phase = only_phase(task(polarization=3.0, activation=0.5, target_macs=target))
    undecided(phase.module)
    step = step_at(phase, 0.5)
    assert ((step.means.values > 0) & (step.means.values < 1)).any()
    terms = phase.loss_terms(step)
    assert terms.keys() == {"polarization", "activation"}
    assert torch.equal(terms["polarization"], polarization(step.means, 3.0))
    assert torch.equal(terms["activation"], activation(step.means, 0.5))


def test_terms_without_weight_are_left_out_and_schedules_set_the_weights():
    ramp = {"kind": "ramp", "end": 2.0, "from_epoch": 1, "to_epoch": 2}
    phase = only_phase(task(polarization=ramp))
    undecided(phase.module)
    assert phase.loss_terms(step_at(phase, 0.5)) == {}
    step = step_at(phase, 1.25)
    terms = {name: term.item() for name, term in phase.loss_terms(step).items()}
    assert terms == {"polarization": pytest.approx(polarization(step.means, 0.5).item())}


def test_without_a_budget_polarization_has_the_papers_weight_of_one_where_none_is_given():
    phase = only_phase(task())
    undecided(phase.module)
    step = step_at(phase, 0.0)
    terms = phase.loss_terms(step)
    assert terms.keys() == {"polarization"}
    assert torch.equal(terms["polarization"], polarization(step.means, 1.0))


def test_a_budget_brings_a_polarization_of_its_own_once_its_target_is_met():
    phase = only_phase(task(target_macs=0.5, budget=BudgetConfig(prune_end=0.5, polarize_end=0.75)))
    undecided(phase.module)
    assert phase.loss_terms(step_at(phase, 0.5 * 3)) == {}
    step = step_at(phase, 0.6 * 3)
    expected = polarization(step.means, phase.budget.polarization_weight(0.6)).item()
    terms = {name: term.item() for name, term in phase.loss_terms(step).items()}
    assert terms == {"polarization": pytest.approx(expected, rel=1e-6)}
    assert expected > 0


def thresholds(phase: Phase) -> torch.Tensor:
    return torch.cat([wrapper.gate.threshold for _, wrapper in gated_modules(phase.module)])


def test_after_a_step_the_budget_moves_the_thresholds_by_the_units_mean_logits():
    phase, twin = only_phase(task(target_macs=0.5)), only_phase(task(target_macs=0.5))
    logits = torch.randn(6)
    phase.after_step(phase.module, torch.ones(6), logits, 0.5 * 3)
    twin.budget.update(twin.module, logits, 0.5)
    assert torch.equal(thresholds(phase), thresholds(twin))
    assert 0 < (logits > thresholds(phase)).sum() < 6


def test_without_a_budget_every_gate_keeps_the_papers_threshold_of_zero():
    phase = only_phase(task())
    phase.after_step(phase.module, torch.ones(6), torch.randn(6), 2.9)
    assert phase.budget is None
    assert torch.equal(thresholds(phase), torch.zeros(6))


@pytest.mark.parametrize(("target", "expected"), [(None, (True, 1.0)), (0.5, (False, 0.1))])
def test_under_a_budget_gates_learn_beside_the_network(target, expected):
    module = only_phase(task(target_macs=target)).module
    seen = {(w.gate.backprop_to_input, round(w.gate.logit_scale.item(), 6)) for _, w in gated_modules(module)}
    assert seen == {expected}


@pytest.mark.parametrize("position", ["before", "between", "after"])
def test_channel_gates_stand_where_the_recipe_says_and_are_counted_there(position):
    the_task = task(gates=GatesConfig(kind="channel", position=position, dense_layers=1, flatten=True))
    phase = only_phase(the_task)
    costs = method_of(the_task).costs
    assert [wrapper.site for _, wrapper in gated_modules(phase.module)] == list(costs.sites)
    assert {site.position for site in costs.sites} == {position}
    assert all(wrapper.gate.flatten for _, wrapper in gated_modules(phase.module))
    assert not any(wrapper.gate.body for _, wrapper in gated_modules(phase.module))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_task_loss_is_summed_over_samples_in_fp32(smoothing):
    phase = only_phase(task())
    phase.label_smoothing = smoothing  # the trainer gives a phase the recipe's where it has none of its own
    logits, labels = torch.randn(6, 10).bfloat16(), torch.arange(6)
    loss = phase.task_loss(logits, labels)
    each = [
        F.cross_entropy(row[None].float(), label[None], label_smoothing=smoothing)
        for row, label in zip(logits, labels, strict=True)
    ]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(each).item(), rel=1e-5)


def test_a_gated_phase_decides_fixes_and_collapses():
    phase = only_phase(task())
    undecided(phase.module)
    x = images(16)
    mask = phase.vote(phase.module, [x])
    assert isinstance(mask, UnitMask)
    fixed, small = phase.masked(phase.module, mask), phase.sliced(phase.module, mask)
    torch.testing.assert_close(small(x), fixed(x), rtol=1e-5, atol=1e-5)
    assert list(gated_modules(small)) == []
    assert (
        count_macs(small, SHAPE) == phase.macs(method_of(task()).costs, mask) == method_of(task()).costs.of(mask.kept)
    )


def test_units_of_earlier_phases_and_of_the_mask_count_together():
    phase = only_phase(task())
    phase.kept = {"gone": (), "layer1.0": (0,)}
    mask = mask_closing(phase.module, ["layer1.0", "layer3.1"])
    costs = method_of(task()).costs
    assert phase.macs(costs, mask) == costs.of({"layer1.0": (), "layer3.1": ()})
    assert phase.macs(costs, None) == costs.dense


def test_a_phase_that_ends_early_is_followed_by_one_of_the_small_network_with_its_mask():
    method = method_of(task())
    phases = method.phases()
    gated = next(phases)
    mask = mask_closing(gated.module, ["layer1.0", "layer3.1"])
    collapsed = next_phase(phases, PhaseResult(gated.module, 1, mask), seed=1)
    assert (collapsed.name, collapsed.continues, collapsed.kept) == ("collapsed", True, mask.kept)
    assert count_macs(collapsed.module, SHAPE) == collapsed.macs(method.costs, mask)
    assert collapsed.vote(collapsed.module, []) == mask
    assert next_phase(phases, PhaseResult(collapsed.module, 3, mask), seed=1) is None


def test_a_phase_that_lasts_to_the_end_is_the_only_one():
    phases = method_of(task()).phases()
    gated = next(phases)
    assert next_phase(phases, PhaseResult(gated.module, 3, mask_closing(gated.module, [])), seed=1) is None


class WithOptions(METHODS["dense"]):
    class Options(Options):
        shrinkage: float = 0.01


def test_a_methods_options_are_validated_by_its_own_class():
    assert WithOptions(task()).options.shrinkage == 0.01
    assert WithOptions(task(method_args={"shrinkage": 0.5})).options.shrinkage == 0.5


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (WithOptions, {"shrinkge": 1}, "unknown recipe key 'method_args.shrinkge'; did you mean"),
        (WithOptions, {"shrinkage": "x"}, "recipe key 'method_args.shrinkage': Input should be a valid number"),
        (METHODS["dense"], {"x": 1}, "unknown recipe key 'method_args.x'; 'method_args' has no such field"),
    ],
)
def test_options_that_a_method_does_not_know_are_refused_in_one_line(method, options, said):
    with pytest.raises(UserError) as refused:
        method(task(method_args=options))
    assert str(refused.value).startswith(said)


def test_gates_of_kind_none_train_the_dense_network():
    config = override(task().config, ["gates.kind=none"])
    assert only_phase(Task(config, 10, SHAPE)).has_gates is False


@pytest.mark.parametrize("target", [None, 0.6])
def test_the_papers_form_of_gates_is_one_setting_away_with_or_without_a_budget(target):
    def gate(**settings):
        recipe = RunConfig(name="t", data="d", model="resnet8", target_macs=target, gates=GatesConfig(**settings))
        module = next(METHODS["consensus"](Task(recipe, 10, (3, 16, 16))).phases()).module
        found = next(gated_modules(module))[1].gate
        return found.last.bias.item(), found.backprop_to_input, round(found.logit_scale.item(), 6)

    paper, budget = (1.0, True, 1.0), (0.0, False, 0.1)
    assert gate() == (paper if target is None else budget)
    for form in (paper, budget):
        keys = ("open_bias", "backprop_to_input", "logit_scale")
        assert gate(**dict(zip(keys, form, strict=True))) == form
