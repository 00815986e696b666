"""The layer gating module: Table 1 of arXiv 2302.10798, left column."""

import copy

import pytest
import torch
from torch import nn
from unit_helpers import images, shaken

from dist_prune.gates import FixedGate, LayerGate


def table_1(gate: LayerGate, channels: int, hidden: int) -> nn.Sequential:
    """The left column built from torch's own modules, up to the head, with the weights of ``gate``."""
    reference = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    ).to(gate.dense1.weight.dtype)
    for ours, theirs in ((gate.dense1, reference[2]), (gate.norm, reference[3]), (gate.dense2, reference[5])):
        theirs.load_state_dict(ours.state_dict())
    return reference.train(gate.training)


def test_has_exactly_the_layers_of_table_1_in_order():
    layers = list(LayerGate(24).children())
    assert [type(layer).__name__ for layer in layers] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "StraightThrough",
    ]
    dense1, norm, _, dense2, _ = layers
    assert (dense1.in_features, dense1.out_features) == (24, 16)
    assert norm.num_features == 16
    assert (dense2.in_features, dense2.out_features) == (16, 1)
    assert dense1.bias is not None
    assert dense2.bias is not None
    assert norm.affine


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hidden", [16, 5])
def test_computes_what_the_layers_of_table_1_compute(training, hidden):
    gate = shaken(LayerGate(6, hidden, open_bias=None)).double().train(training)
    x = images(40, 5, 6, dtype=torch.float64)[..., :4]
    gate.dense2.bias.data -= table_1(gate, 6, hidden)(x).median() + 0.01
    reference = table_1(gate, 6, hidden)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    _, _, decisions = gate(mine)
    logits = reference(theirs)
    assert torch.equal(decisions, (logits > 0).double())
    assert 0 < decisions.mean() < 1, "a test where all samples decide alike says little"

    upstream = torch.randn(40, 1, dtype=torch.float64)
    decisions.backward(upstream)
    logits.backward(upstream * (logits.detach().abs() <= 1))
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    gradients = {n: p.grad for n, p in gate.named_parameters()}
    expected = dict(zip(gradients, [p.grad for p in reference.parameters()], strict=True))
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-14)
    same = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(gate.norm.running_mean, reference[3].running_mean, **same)
    torch.testing.assert_close(gate.norm.running_var, reference[3].running_var, **same)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_starts_open_within_reach_of_the_gradient(training, seed):
    torch.manual_seed(seed)
    gate = LayerGate(32).train(training)
    x = torch.randn(256, 32, 4, 4).relu()
    logits = table_1(gate, 32, 16)(x)
    assert gate(x)[2].mean() > 0.99
    assert (logits - 1).abs().max() < 0.5


def test_open_bias_none_leaves_torchs_own_start():
    torch.manual_seed(3)
    gate = LayerGate(8, open_bias=None)
    torch.manual_seed(3)
    first, last = nn.Linear(8, 16), nn.Linear(16, 1)
    assert torch.equal(gate.dense1.weight, first.weight)
    assert torch.equal(gate.dense2.weight, last.weight)
    assert torch.equal(gate.dense2.bias, last.bias)


def test_decides_in_full_precision_under_autocast():
    gate = LayerGate(8).train()
    x = torch.randn(16, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, decisions = gate(x.bfloat16())
    assert decisions.dtype == torch.float32


def test_hands_its_input_through_and_its_decisions_over_once():
    gate = LayerGate(8)
    x = torch.randn(4, 8, 3, 3)
    assert gate.take_decisions() is None
    first, second, decisions = gate(x)
    assert torch.equal(first, x)
    assert torch.equal(second, x)
    assert gate.take_decisions() is decisions
    assert gate.take_decisions() is None


def test_a_copy_in_the_middle_of_a_step_brings_no_decisions_along():
    gate = LayerGate(8)
    gate(torch.randn(4, 8, 3, 3))
    twin = copy.deepcopy(gate)
    assert twin.take_decisions() is None
    assert gate.take_decisions() is not None
    assert torch.equal(twin.dense1.weight, gate.dense1.weight)


def test_a_fixed_gate_decides_alike_for_every_sample_and_is_not_saved():
    gate = FixedGate(torch.tensor([1.0, 0.0, 1.0]))
    x = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    first, second, decisions = gate(x)
    assert gate.units == 3
    assert first is x
    assert second is x
    assert torch.equal(decisions, torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64).repeat(5, 1))
    assert torch.equal(gate.take_decisions(), decisions)
    assert gate.state_dict() == {}
