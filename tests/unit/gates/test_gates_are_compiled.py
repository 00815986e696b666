"""torch.compile finds the whole gated network in one graph, which serves every step of training."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from unit_helpers import shaken

from dist_prune import attach_gates, build_model
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.noise import NoiseKey, noise
from dist_prune.gates.wrappers import gated_modules, gates_of, set_noise_key

STEPS = 4


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gated(kind, head):
    model = shaken(build_model("resnet8", num_classes=10, width=4))  # so that branches matter
    attach_gates(model, kind=kind, head=head, input_shape=(3, 16, 16), open_bias=0.0)
    for gate in gates_of(model).values():
        gate.random_drop = 0.5
    return model.train()


def steps(model, images, moments=True):
    """Logits, decisions and gradients of some steps, each of which draws other noise."""
    found = []
    for step in range(STEPS):
        if moments:
            set_noise_key(model, NoiseKey(1, step, 8 * step, temperature=1.0))
        model.zero_grad()
        logits = model(images)
        logits.square().mean().backward()
        decisions = [gate.gate.pop_decisions()[0].detach() for _, gate in gated_modules(model)]
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([logits.detach(), *decisions, *gradients])
    return found


@pytest.mark.parametrize(
    ("kind", "head"), [("layer", "ste"), ("channel", "ste"), ("layer", "gumbel"), ("layer", "bernoulli")]
)
def test_one_graph_holds_the_gates_and_serves_all_steps_with_what_eager_computes(kind, head):
    model, images = gated(kind, head), torch.randn(8, 3, 16, 16)
    compiled, counter = copy.deepcopy(model), CompileCounterWithBackend("eager")
    compiled.compile(backend=counter, fullgraph=True)  # raises where a graph would break
    for expected, found in zip(steps(model, images), steps(compiled, images), strict=True):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_a_loop_that_sets_no_moment_is_compiled_once_as_well():
    model, images = gated("layer", "ste"), torch.randn(8, 3, 16, 16)
    compiled, counter = copy.deepcopy(model), CompileCounterWithBackend("eager")
    compiled.compile(backend=counter, fullgraph=True)
    expected, found = steps(model, images, moments=False), steps(compiled, images, moments=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0][0], found[2][0]), "other samples drop units in every step"
    assert counter.frame_count == 1


def test_the_noise_of_compiled_gates_is_to_the_last_bit_that_of_all_others():
    compiled = torch.compile(noise, fullgraph=True)
    for step in range(3):
        noise_key, like = NoiseKey(7, step, 5), torch.empty(6, 4)
        assert torch.equal(compiled(noise_key, 2, like, True), noise(noise_key, 2, like, True))


def test_a_freezer_that_does_not_freeze_knows_what_is_decided_and_leaves_the_graph_as_it_is():
    model = gated("layer", "ste")
    freezer = Freezer(model, patience=2, freezes=False)
    units = sum(gate.units for gate in gates_of(model).values())
    for _ in range(2):
        assert not freezer.all_decided
        freezer.update(model, torch.zeros(units))
    assert freezer.all_decided
    assert all(gate.constant is None for gate in gates_of(model).values())
    freezer.apply(model)
    assert freezer.all_decided
    assert all(gate.constant is None for gate in gates_of(model).values())
