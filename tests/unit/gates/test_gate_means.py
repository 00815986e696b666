"""Gate means: what was decided in the latest forward pass, averaged, with its gradient."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_helpers import gated_resnet, images, undecided

from dist_prune import activation, attach_gates, build_model, distributed, gate_means, polarization
from dist_prune.gates.gate import Gate
from dist_prune.gates.means import MeanAccumulator, sum_decisions
from dist_prune.gates.wrappers import gated_modules, gates_of


def test_means_are_those_of_the_decisions_of_all_samples():
    gated = gated_resnet(20)
    x = images(16)
    seen = {name: [] for name, _ in gated_modules(gated)}
    for name, wrapper in gated_modules(gated):
        wrapper.gate.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out[2]))
    gated(x)
    values, sizes, _ = gate_means(gated)
    expected = [torch.cat(decisions).double().mean().item() for decisions in seen.values()]
    assert sizes == (1,) * 9
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx(expected, abs=1e-7)
    assert any(0 < mean < 1 for mean in expected)


def test_gradients_are_attached():
    gated = gated_resnet(8).train()
    gated(images(16))
    means = gate_means(gated)
    assert means.values.requires_grad
    (polarization(means) + activation(means)).backward()
    for name, wrapper in gated_modules(gated):
        assert wrapper.gate.last.weight.grad is not None, name


def test_the_gradient_is_that_of_the_mean_over_samples():
    gated = gated_resnet(8, dtype=torch.float64).train()
    x = images(16, dtype=torch.float64)
    twin = copy.deepcopy(gated)
    gated(x)
    (gate_means(gated).values * torch.arange(1.0, 4)).sum().backward()
    twin(x)
    decisions = [wrapper.gate.pop_decisions()[0] for _, wrapper in gated_modules(twin)]
    sum(weight * d.mean() for weight, d in zip((1.0, 2.0, 3.0), decisions, strict=True)).backward()
    for (name, ours), theirs in zip(gated.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_mean_logits_are_those_behind_the_decisions_and_carry_no_gradient(kind):
    gated = undecided(attach_gates(build_model("resnet8", num_classes=10, width=4), kind)).train()
    seen = []
    for _, wrapper in gated_modules(gated):
        wrapper.gate.last.register_forward_hook(lambda _, __, out: seen.append(out.mean(0)))
    gated(images(16))
    means = gate_means(gated)
    assert not means.logits.requires_grad
    assert means.logits.dtype == torch.float32
    torch.testing.assert_close(means.logits, torch.cat(seen).detach(), rtol=1e-5, atol=1e-6)
    assert means.sizes == ((1, 1, 1) if kind == "layer" else (4, 8, 16))


def test_raises_without_a_forward_pass_since_the_last_call():
    gated = gated_resnet(8)
    with pytest.raises(RuntimeError, match=r"forward pass.*layer1\.0"):
        gate_means(gated)
    gated(images())
    gate_means(gated)
    with pytest.raises(RuntimeError, match="forward pass since the last call"):
        gate_means(gated)


def test_raises_without_gates():
    plain = build_model("resnet8", num_classes=10)
    plain(images())
    with pytest.raises(RuntimeError, match="attach_gates"):
        gate_means(plain)


def test_the_latest_of_several_forward_passes_counts():
    gated = gated_resnet(8)
    first, second = images(8), images(8)
    gated(second)
    expected = gate_means(gated).values
    gated(first)
    gated(second)
    assert torch.equal(gate_means(gated).values, expected)


def test_a_model_can_be_copied_in_the_middle_of_a_step():
    gated = gated_resnet(8).train()
    logits = gated(images())
    twin = copy.deepcopy(gated)
    with pytest.raises(RuntimeError, match="forward pass"):
        gate_means(twin)
    (logits.sum() + polarization(gate_means(gated))).backward()
    assert all(p.grad is None for p in twin.parameters())
    twin(images())
    gate_means(twin)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 weights"])
def test_a_thousand_samples_are_counted_exactly_under_bf16(weights):
    """bf16 itself cannot count beyond 256."""
    gated = attach_gates(build_model("resnet8", num_classes=10, width=4)).to(weights).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        gated(images(1001, 4, dtype=weights))
    sums, logits, samples = sum_decisions(gates_of(gated))
    assert samples == 1001
    assert sums.dtype == torch.float32
    assert sums.tolist() == [1001.0] * 3
    assert (logits.dtype, logits.shape) == (torch.float32, (3,))


def add(window, decisions, *scalars):
    """Add decisions (B, units) to a window, as the forward pass of a micro-batch would."""
    (gate,) = window._gates.values()
    with window.collect(len(decisions), torch.tensor(scalars)):
        gate.record(decisions, decisions)
    return window.wait()


def window_of_one_gate(units):
    return MeanAccumulator({"layer": Gate(1, units)})


def window_of(batches, loss):
    """Mean values after each micro-batch, and the gradient of the window as an engine averages it."""
    window, values, gradients = window_of_one_gate(batches[0].shape[1]), [], []
    for decisions in batches:
        logits = decisions.clone().requires_grad_()
        means = add(window, logits).values
        loss(means).backward()
        values.append(means.detach())
        gradients.append(logits.grad / len(batches))
    return values, gradients


def bent(means):
    return (means * (1 - means) * torch.arange(1.0, len(means) + 1)).sum()


@pytest.mark.parametrize("times", [2, 3, 7])
def test_identical_micro_batches_give_the_value_and_gradient_of_one(times):
    batch = torch.randint(0, 2, (12, 5)).float()
    (value,), (gradient,) = window_of([batch], bent)
    values, gradients = window_of([batch] * times, bent)
    for later in values:
        torch.testing.assert_close(later, value, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(sum(gradients), gradient, rtol=1e-5, atol=1e-8)


BATCH = st.integers(2, 40).flatmap(lambda n: st.lists(st.integers(0, 1), min_size=n, max_size=n))


@settings(deadline=None)
@given(st.lists(BATCH, min_size=1, max_size=5))
def test_unequal_micro_batches_give_the_mean_over_everything_so_far(batches):
    tensors = [torch.tensor(batch).float().view(-1, 1) for batch in batches]
    values, _ = window_of(tensors, lambda means: means.sum())
    for k, value in enumerate(values, start=1):
        so_far = [decision for batch in batches[:k] for decision in batch]
        assert value.item() == pytest.approx(sum(so_far) / len(so_far), abs=2e-7)
        if sum(so_far) in (0, len(so_far)):
            assert value.item() == sum(so_far) / len(so_far), "decided units are exactly 0 or 1"


def test_the_gradient_goes_through_the_current_micro_batch():
    window = window_of_one_gate(2)
    first = torch.ones(4, 2, requires_grad=True)
    second = torch.zeros(12, 2, requires_grad=True)
    add(window, first)
    means = add(window, second).values
    means.sum().backward()
    assert means.tolist() == [0.25, 0.25]
    assert first.grad is None
    assert torch.equal(second.grad, torch.full((12, 2), 1 / 12))


def test_scalars_and_counts_of_a_window_add_up():
    window = window_of_one_gate(3)
    add(window, torch.zeros(4, 3), 7.0, 8.0)
    assert window.scalars.tolist() == [7, 8]
    add(window, torch.zeros(6, 3), 1.0, 2.0)
    assert window.scalars.tolist() == [8, 10]
    assert (float(window.micro_samples), float(window.samples)) == (6, 10)


def test_a_network_without_gates_has_a_window_of_nothing_but_scalars():
    window = MeanAccumulator({})
    with window.collect(4, torch.tensor([3.0])):
        pass
    means = window.wait()
    assert means.values.shape == means.logits.shape == (0,)
    assert (float(window.samples), window.scalars.tolist()) == (4, [3])


@pytest.fixture
def order(monkeypatch):
    """What happens, in its order: here, each all-reduce that is begun."""
    happened = []
    start = distributed.start_all_reduce
    monkeypatch.setattr(distributed, "start_all_reduce", lambda tensor: happened.append("all-reduce") or start(tensor))
    return happened


def note(order, module, name):
    module.register_forward_pre_hook(lambda *_: order.append(name))


@pytest.mark.parametrize("early", [True, False])
def test_the_all_reduce_begins_when_the_last_gate_has_decided_or_if_asked_after_the_forward_pass(order, early):
    gated, x = gated_resnet(8).train(), images(16)
    window = MeanAccumulator(gates_of(gated))
    *_, (_, last) = gated_modules(gated)
    note(order, last.gate, "last gate")
    note(order, last.inner.conv1, "last block")
    order.clear()
    twin = copy.deepcopy(gated)
    with window.collect(16, torch.tensor([5.0]), early):
        gated(x)
    assert order == ["last gate", *(["all-reduce", "last block"] if early else ["last block", "all-reduce"])]
    means = window.wait()
    twin(x)
    assert torch.equal(means.values, gate_means(twin).values)
    assert means.sizes == (1,) * 3
    means.values.sum().backward()
    assert all(wrapper.gate.last.weight.grad is not None for _, wrapper in gated_modules(gated))


def test_without_gates_the_all_reduce_begins_before_the_forward_pass(order):
    plain = build_model("resnet8", num_classes=10, width=4)
    note(order, plain, "network")
    with MeanAccumulator({}).collect(4, torch.tensor([5.0])):
        plain(images(4, 4))
    assert order == ["all-reduce", "network"]


def test_a_gate_that_the_forward_pass_left_out_is_named_and_nothing_is_left_behind():
    gated = gated_resnet(8)
    first, _ = next(gated_modules(gated))
    with pytest.raises(RuntimeError, match="saw none"), MeanAccumulator(gates_of(gated)).collect(4, torch.empty(0)):
        gated.get_submodule(first)(torch.randn(4, 8, 8, 8))
    gated(images(4))
    gate_means(gated)


def test_a_network_without_gates_has_no_means():
    with pytest.raises(RuntimeError, match="attach_gates"):
        gates_of(build_model("resnet8", num_classes=10, width=4))
