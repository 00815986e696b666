"""Regularizers: equations 7 to 9 and 11 of arXiv 2302.10798, and the distance from a MACs budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_prune import activation, macs_distance, polarization
from dist_prune.gates.means import GateMeans
from dist_prune.regularizers import mean_over_sites

UNIT = st.floats(0, 1)
SITES = st.lists(st.lists(UNIT, min_size=1, max_size=6), min_size=1, max_size=5)


def means_of(units_by_site):
    flat = [unit for site in units_by_site for unit in site]
    return torch.tensor(flat, dtype=torch.float64), tuple(len(site) for site in units_by_site)


def average(values):
    values = list(values)
    return sum(values) / len(values)


@given(SITES, st.floats(0, 10))
def test_polarization_is_equation_9(units_by_site, weight):
    expected = weight * average(average((1 - g) * g for g in site) for site in units_by_site)
    assert polarization(means_of(units_by_site), weight).item() == pytest.approx(expected, abs=1e-12)


@given(st.lists(UNIT, min_size=1, max_size=8))
def test_polarization_of_layer_gates_is_equation_8(layers):
    expected = sum((1 - g) * g for g in layers) / len(layers)
    assert polarization(means_of([[g] for g in layers])).item() == pytest.approx(expected, abs=1e-12)


@given(SITES, st.floats(0, 10))
def test_activation_is_equation_11(units_by_site, weight):
    expected = weight * average(average(site) for site in units_by_site)
    assert activation(means_of(units_by_site), weight).item() == pytest.approx(expected, abs=1e-12)


def test_sites_weigh_alike_however_many_units_they_have():
    wide_open = means_of([[1.0] * 99, [0.0]])
    assert mean_over_sites(wide_open).item() == pytest.approx(0.5)
    assert polarization(means_of([[0.5] * 99, [0.0]])).item() == pytest.approx(0.125)


def test_polarization_is_zero_exactly_where_all_is_decided_and_a_quarter_at_most():
    assert polarization(means_of([[0.0, 1.0, 1.0], [0.0]])).item() == 0.0
    assert polarization(means_of([[0.5, 0.5], [0.5]])).item() == 0.25
    assert polarization(means_of([[0.0, 1e-9]])).item() > 0


@given(SITES)
def test_gradients_are_the_derivatives_by_hand(units_by_site):
    values, sizes = means_of(units_by_site)
    shares = torch.tensor([1 / (len(sizes) * n) for n in sizes for _ in range(n)], dtype=torch.float64)
    for function, slope in ((polarization, 3 * (1 - 2 * values)), (activation, 3 * torch.ones_like(values))):
        leaf = values.clone().requires_grad_()
        function((leaf, sizes), 3.0).backward()
        torch.testing.assert_close(leaf.grad, slope * shares, rtol=1e-12, atol=1e-15)


@given(UNIT, UNIT, st.floats(0, 10))
def test_the_budget_term_is_the_weighted_distance_of_the_share_from_the_target(share, target, weight):
    term = macs_distance(torch.tensor(share, dtype=torch.float64), target, weight)
    assert term.item() == pytest.approx(weight * abs(share - target), abs=1e-12)


@pytest.mark.parametrize(("share", "sign"), [(0.9, 1), (0.51, 1), (0.1, -1)])
def test_the_budget_pulls_with_constant_strength_from_both_sides(share, sign):
    leaf = torch.tensor(share, requires_grad=True)
    macs_distance(leaf, 0.5, 2.0).backward()
    assert leaf.grad.item() == sign * 2.0


def test_means_may_come_with_their_logits_as_gate_means_do():
    values, sizes = means_of([[0.25, 0.75], [0.5]])
    means = GateMeans(values, sizes, torch.randn(3))
    assert torch.equal(polarization(means, 2.0), polarization((values, sizes), 2.0))
    assert torch.equal(activation(means, 2.0), activation((values, sizes), 2.0))
