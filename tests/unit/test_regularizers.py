"""Regularizers: equations 7 to 9 and 11 of arXiv 2302.10798, and the distance from a MACs budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_prune import activation, macs_distance, polarization
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


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([1.0, 1.0, 1.0], 0.5, 0.5),  # dense: 100 of 100
        ([0.0, 0.0, 0.0], 0.5, 0.4),  # only what no gate controls: 10 of 100
        ([0.5, 0.5, 0.5], 0.5, 0.05),  # 55 of 100
        ([0.0, 1.0, 1.0], 0.8, 0.0),  # 80 of 100
    ],
)
def test_the_budget_compares_shares_of_the_dense_network(values, target, expected):
    means = torch.tensor(values), (1, 1, 1)
    unit_macs = torch.tensor([20.0, 30.0, 40.0])
    assert macs_distance(means, unit_macs, 10.0, target).item() == pytest.approx(expected, abs=1e-6)
    assert macs_distance(means, unit_macs, 10.0, target, 3.0).item() == pytest.approx(3 * expected, abs=1e-6)


@pytest.mark.parametrize(("value", "sign"), [(0.9, 1), (0.1, -1)])
def test_the_budget_pulls_with_constant_strength_from_both_sides(value, sign):
    values = torch.full((3,), value, requires_grad=True)
    unit_macs = torch.tensor([20.0, 30.0, 40.0])
    macs_distance((values, (1, 1, 1)), unit_macs, 10.0, 0.5, 2.0).backward()
    torch.testing.assert_close(values.grad, sign * 2 * unit_macs / 100)


def test_millions_of_macs_do_not_round_the_share_away():
    unit_macs = torch.full((54,), 4_751_360.0)
    means = torch.cat([torch.ones(29), torch.zeros(25)]), (1,) * 54
    share = (1_000_000 + 29 * 4_751_360) / (1_000_000 + 54 * 4_751_360)
    assert macs_distance(means, unit_macs, 1_000_000, 0.1).item() == pytest.approx(share - 0.1, abs=1e-6)
