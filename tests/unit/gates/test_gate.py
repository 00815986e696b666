"""The gating modules: Table 1 of arXiv 2302.10798, for layers and for channels, with one and two dense layers."""

import copy
import math

import pytest
import torch
from torch import nn
from unit_helpers import images, shaken

from dist_prune.gates.gate import Gate

CHANNELS, PIXELS = 6, 20
FORMS = [(2, 1, False), (2, 6, False), (2, 6, True), (1, 1, False), (1, 6, True)]
FORM = pytest.mark.parametrize(("dense_layers", "units", "flatten"), FORMS)


def table_1(gate: Gate, hidden: int = 16) -> nn.Sequential:
    """A column of the table built from torch's own modules, up to the head, with the weights of ``gate``."""
    first = gate.body[0] if gate.body else gate.last
    reference = [nn.Flatten()] if gate.flatten else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if gate.body:
        reference += [nn.Linear(first.in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    reference += [nn.Linear(gate.last.in_features, gate.units)]
    theirs = nn.Sequential(*reference).to(gate.last.weight.dtype)
    ours = [*gate.body, gate.last]
    for mine, their in zip(ours, list(theirs)[-len(ours) :], strict=True):
        their.load_state_dict(mine.state_dict())
    return theirs.train(gate.training)


def gate_of(dense_layers: int, units: int, flatten: bool, **options) -> Gate:
    features = CHANNELS * PIXELS if flatten else CHANNELS
    return Gate(features, units, dense_layers=dense_layers, flatten=flatten, **options)


def maps(samples: int, dtype: torch.dtype = torch.float64, seed: int | None = None) -> torch.Tensor:
    if seed is not None:
        torch.manual_seed(seed)
    return images(samples, 5, CHANNELS, dtype=dtype)[..., :4].contiguous()


def test_has_exactly_the_layers_of_table_1_in_order():
    gate = Gate(24)
    first, norm, relu = gate.body
    assert [type(module).__name__ for module in (first, norm, relu, gate.last, gate.head)] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "StraightThrough",
    ]
    assert [name for name, _ in gate.named_children()] == ["body", "last", "head"]
    assert (first.in_features, first.out_features) == (24, 16)
    assert norm.num_features == 16
    assert (gate.last.in_features, gate.last.out_features) == (16, 1)
    assert first.bias is not None
    assert gate.last.bias is not None
    assert norm.affine


def test_with_one_dense_layer_nothing_stands_before_it():
    gate = Gate(24, 8, dense_layers=1)
    assert list(gate.body) == []
    assert (gate.last.in_features, gate.last.out_features) == (24, 8)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hidden", [16, 5])
@FORM
def test_computes_what_the_layers_of_table_1_compute(dense_layers, units, flatten, training, hidden):
    gate = gate_of(dense_layers, units, flatten, hidden=hidden, open_bias=None)
    gate = shaken(gate).double().train(training)
    x = maps(40)
    gate.last.bias.data -= table_1(gate, hidden)(x).detach().median(0).values + 0.01
    reference = table_1(gate, hidden)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    _, _, decisions = gate(mine)
    logits = reference(theirs)
    assert torch.equal(decisions, (logits > 0).double())
    assert ((decisions.mean(0) - 0.5).abs() < 0.5).all(), "a test where all samples decide alike says little"

    upstream = torch.randn(40, units, dtype=torch.float64)
    decisions.backward(upstream)
    logits.backward(upstream * (logits.detach().abs() <= 1))
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-13)
    gradients = {n: p.grad for n, p in gate.named_parameters()}
    expected = dict(zip(gradients, [p.grad for p in reference.parameters()], strict=True))
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-13)
    for ours, their in zip(gate.body, list(reference)[-4:-1], strict=False):  # and running statistics
        torch.testing.assert_close(ours.state_dict(), their.state_dict(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
@FORM
def test_starts_open_within_reach_of_the_gradient(dense_layers, units, flatten, training, seed):
    torch.manual_seed(seed)
    gate = gate_of(dense_layers, units, flatten).train(training)
    x = torch.randn(256, CHANNELS, 5, 4).relu()
    logits = table_1(gate)(x)
    assert gate(x)[2].mean() > 0.99
    assert (logits - 1).abs().max() < 0.5


@pytest.mark.parametrize(("dense_layers", "inputs"), [(1, 900), (2, 16)])
def test_the_first_weights_of_the_last_layer_keep_logits_small_for_any_number_of_inputs(dense_layers, inputs):
    gate = Gate(900, 2000, dense_layers=dense_layers)
    assert gate.last.weight.std().item() == pytest.approx(0.04 / math.sqrt(inputs), rel=0.02)
    assert torch.equal(gate.last.bias, torch.ones(2000))


def test_open_bias_none_leaves_torchs_own_start():
    torch.manual_seed(3)
    gate = Gate(8, open_bias=None)
    torch.manual_seed(3)
    first, last = nn.Linear(8, 16), nn.Linear(16, 1)
    assert torch.equal(gate.body[0].weight, first.weight)
    assert torch.equal(gate.last.weight, last.weight)
    assert torch.equal(gate.last.bias, last.bias)


def test_tokens_are_averaged_like_pixels():
    gate = shaken(Gate(CHANNELS, open_bias=None)).double().eval()
    x = maps(8)
    gate(x)
    as_map = gate.pop_decisions()
    gate(x.flatten(2).transpose(1, 2))
    as_tokens = gate.pop_decisions()
    torch.testing.assert_close(as_tokens, as_map, rtol=1e-12, atol=1e-13)


@FORM
def test_without_feedback_a_gate_decides_alike_and_learns_but_its_map_does_not(dense_layers, units, flatten):
    gate = shaken(gate_of(dense_layers, units, flatten, open_bias=0.1)).double().train()
    deaf = copy.deepcopy(gate)
    deaf.backprop_to_input = False
    results = []
    for module in (gate, deaf):
        x = maps(8, seed=1).requires_grad_()
        first, second, decisions = module(x)
        (first.square().sum() + 2 * second.sum() + decisions.sum()).backward()
        results.append((decisions.detach(), [p.grad for p in module.parameters()], x.grad))
    (decisions, learned, both), (its_decisions, its_learned, alone) = results
    torch.testing.assert_close((its_decisions, its_learned), (decisions, learned), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(alone, 2 * x.detach() + 2, rtol=1e-12, atol=1e-13)
    assert not torch.equal(both, alone)


@FORM
def test_sensitivity_scales_what_the_last_dense_layer_reads(dense_layers, units, flatten):
    gate = gate_of(dense_layers, units, flatten, open_bias=None).double().eval()
    gate.logit_scale.fill_(0.25)
    x = maps(8)
    expected = table_1(gate)
    expected[-1].weight.data *= 0.25
    gate(x)
    torch.testing.assert_close(gate.pop_decisions()[1], expected(x).detach(), rtol=1e-11, atol=1e-12)


def test_a_unit_opens_exactly_where_its_logit_exceeds_its_threshold():
    gate = Gate(3, 3, dense_layers=1)
    nn.init.eye_(gate.last.weight)
    nn.init.zeros_(gate.last.bias)
    gate.threshold.copy_(torch.tensor([-0.75, 0.25, 10.0]))
    above = torch.nextafter(gate.threshold, torch.tensor(99.0))
    for ste_window in (1.0, 40.0):
        gate.ste_window.fill_(ste_window)
        for logits, decision in ((gate.threshold, 0), (above, 1), (gate.threshold - 5, 0), (above + 5, 1)):
            _, _, decisions = gate(logits.view(1, 3, 1, 1))
            assert decisions.tolist() == [[decision] * 3], (ste_window, logits)


@pytest.mark.parametrize("ste_window", [1.0, 4.0])
def test_the_gradient_passes_within_reach_of_the_threshold(ste_window):
    gate = Gate(1, dense_layers=1)
    nn.init.eye_(gate.last.weight)
    nn.init.zeros_(gate.last.bias)
    gate.threshold.fill_(2.0)
    gate.ste_window.fill_(ste_window)
    x = (2 + ste_window * torch.tensor([-1.25, -1.0, 0.0, 1.0, 1.25])).view(-1, 1, 1, 1).requires_grad_()
    gate(x)[2].sum().backward()
    assert x.grad.flatten().tolist() == [0, 1 / ste_window, 1 / ste_window, 1 / ste_window, 0]


def test_decides_in_full_precision_under_autocast():
    gate = Gate(8).train()
    x = torch.randn(16, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, decisions = gate(x.bfloat16())
    assert decisions.dtype == torch.float32


def test_hands_its_input_through_and_its_decisions_over_once_with_their_logits():
    gate = Gate(8, 5, open_bias=0.0).train()
    x = torch.randn(4, 8, 3, 3)
    assert gate.pop_decisions() is None
    first, second, decisions = gate(x)
    assert torch.equal(first, x)
    assert torch.equal(second, x)
    kept, logits = gate.pop_decisions()
    assert kept is decisions
    assert not logits.requires_grad
    torch.testing.assert_close(logits, table_1(gate)(x).detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(decisions, (logits > 0).float())
    assert gate.pop_decisions() is None


def test_a_copy_in_the_middle_of_a_step_brings_no_decisions_along():
    gate = Gate(8)
    gate(torch.randn(4, 8, 3, 3))
    twin = copy.deepcopy(gate)
    assert twin.pop_decisions() is None
    assert gate.pop_decisions() is not None
    assert torch.equal(twin.body[0].weight, gate.body[0].weight)


def test_thresholds_are_saved_with_the_weights():
    """A resumed run continues with them, and evaluation decides as training did."""
    gate, other = Gate(8, 3), Gate(8, 3)
    gate.threshold.copy_(torch.tensor([0.5, -2.0, 3.0]))
    gate.ste_window.fill_(6.0)
    other.load_state_dict(gate.state_dict())
    assert other.threshold.tolist() == [0.5, -2.0, 3.0]
    assert other.ste_window.item() == 6.0


def test_a_frozen_gate_decides_alike_for_every_sample_and_that_is_not_saved():
    gate = Gate(2, 3)
    before = gate.state_dict()
    gate.freeze(torch.tensor([True, False, True]))
    gate.double()
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    first, second, decisions = gate(x)
    assert first is x
    assert second is x
    assert torch.equal(decisions, torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).repeat(5, 1))
    assert torch.equal(gate.pop_decisions()[0], decisions)
    assert gate.state_dict().keys() == before.keys()
