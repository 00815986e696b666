"""Random drop: units are closed at random for a few samples, and only there gates learn."""

import torch
import torch.nn.functional as F
from unit_helpers import images

from dist_prune import attach_gates, build_model
from dist_prune.gates.means import gate_means
from dist_prune.gates.noise import NoiseKey, random_drop
from dist_prune.gates.wrappers import gated_modules

NOISE_KEY = NoiseKey(seed=1, step=5, first_sample=0)


def test_in_a_share_of_the_samples_a_part_of_the_units_is_closed_that_is_drawn_evenly():
    samples, units, share = 20_000, 64, 0.3
    closed = 1 - random_drop(torch.ones(samples, units), share, NOISE_KEY, gate=2)
    part = closed.mean(1)
    untouched = (part == 0).float().mean().item()
    # of the chosen samples, 1 in 65 draws no unit at all
    assert abs(untouched - (1 - share + share / 65)) < 4 * (0.3 * 0.7 / samples) ** 0.5
    chosen = part[part > 0]
    histogram = torch.histc(chosen, 8, 0, 1) / len(chosen)
    assert ((histogram - 1 / 8).abs() < 0.02).all(), histogram
    assert ((closed.mean(0) - share / 2).abs() < 0.015).all(), "no unit is closed more often than others"


def test_draws_differ_between_seeds_steps_and_gates():
    seen = random_drop(torch.ones(64, 8), 0.5, NOISE_KEY, gate=2)
    for other, gate in ((NoiseKey(2, 5, 0), 2), (NoiseKey(1, 6, 0), 2), (NOISE_KEY, 3)):
        assert not torch.equal(seen, random_drop(torch.ones(64, 8), 0.5, other, gate))


def test_a_sample_draws_the_same_however_the_batch_is_dealt_to_ranks():
    whole = random_drop(torch.ones(16, 4), 0.8, NOISE_KEY, gate=0)
    parts = [random_drop(torch.ones(n, 4), 0.8, NoiseKey(1, 5, first), gate=0) for first, n in ((0, 6), (6, 10))]
    assert torch.equal(whole, torch.cat(parts))


def test_the_gradient_is_that_of_bringing_a_closed_unit_back():
    """Of (kept + g * branch - target)^2 / 2 at g = 0, though the gate said 1."""
    kept, branch, target = torch.randn(3, 64, 1, dtype=torch.float64)
    decisions = torch.ones(64, 1, dtype=torch.float64, requires_grad=True)
    gate = random_drop(decisions, 1.0, NOISE_KEY, gate=0)
    ((kept + gate * branch - target) ** 2 / 2).sum().backward()
    expected = torch.where(gate == 0, (kept - target) * branch, 0)
    assert torch.allclose(decisions.grad, expected.detach())
    assert 0 < (gate == 0).sum() < 64


def dropping_network(random_drop: float):
    torch.manual_seed(0)
    model = attach_gates(build_model("resnet8", num_classes=10), "layer")
    for _, gated in gated_modules(model):
        gated.gate.random_drop = random_drop
    return model


def test_gate_means_are_those_of_the_gates_own_decisions():
    model = dropping_network(0.5)
    model(images(32))
    assert torch.equal(gate_means(model).values, torch.ones(3))


def test_nothing_is_dropped_in_evaluation():
    plain, dropping = (dropping_network(share).eval() for share in (0.0, 0.5))
    shown = images(8)
    assert torch.equal(plain(shown), dropping(shown))
    plain.train(), dropping.train()
    assert not torch.equal(plain(shown), dropping(shown))


def test_gates_learn_from_drop_samples_alone():
    """Where no sample draws it, a gate has no gradient."""
    model = dropping_network(1e-9)
    F.cross_entropy(model(images(16)), torch.zeros(16, dtype=torch.long)).backward()
    assert all(not gated.gate.last.bias.grad.any() for _, gated in gated_modules(model))
