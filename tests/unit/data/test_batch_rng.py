"""Random numbers are functions of what they are for, and stay what they are."""

import numpy as np
import pytest

from dist_prune.data.batch_rng import BatchRng, below, permutation


def test_the_numbers_of_today_are_those_of_tomorrow():
    """A run is resumed with another version of numpy: its epoch must continue in the same order."""
    assert permutation(8, "shards", 1, 2).tolist() == [4, 7, 1, 3, 6, 0, 2, 5]
    assert below(1000, "turn", 1, 2) == 630
    draws = BatchRng(1, 2, 3, first=4, rows=2)
    assert draws.of_rows("flip", 1).ravel().round(6).tolist() == [0.274083, 0.465416]
    assert draws.seeds_of_rows("policy") == [745818669960066186, 881095989296833101]
    assert round(draws.beta_of_batch("mixup", 0.4), 6) == 0.387167


def test_a_rows_numbers_do_not_depend_on_the_rows_beside_it():
    whole = BatchRng(1, 2, 3, first=0, rows=64)
    for first, rows in ((0, 64), (5, 1), (32, 32), (63, 1)):
        part = BatchRng(1, 2, 3, first, rows)
        for columns in (1, 22):
            everything = whole.of_rows("crop", columns)
            assert np.array_equal(part.of_rows("crop", columns), everything[first : first + rows])
        assert part.seeds_of_rows("policy") == whole.seeds_of_rows("policy")[first : first + rows]
        assert np.array_equal(part.of_batch("mix", 3), whole.of_batch("mix", 3))
        assert part.beta_of_batch("mixup", 0.3) == whole.beta_of_batch("mixup", 0.3)


def test_purpose_seed_epoch_and_step_all_change_the_numbers():
    keys = [("a", 1, 2, 3), ("b", 1, 2, 3), ("a", 2, 2, 3), ("a", 1, 3, 3), ("a", 1, 2, 4), ("a", 1, 2, 0)]
    rows = {tuple(BatchRng(*key, 0, 4).of_rows(purpose, 2).ravel()) for purpose, *key in keys}
    orders = {tuple(permutation(20, purpose, *key)) for purpose, *key in keys}
    assert len(rows) == len(orders) == len(keys)


@pytest.mark.parametrize("length", [0, 1, 7, 1000])
def test_a_permutation_holds_every_number_once(length):
    assert sorted(permutation(length, "window", 3)) == list(range(length))


def test_uniform_numbers_fill_the_interval_evenly():
    numbers = BatchRng(1, 0, 0, 0, 1000).of_rows("crop", 20).ravel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, 10, (0, 1))[0]
    assert np.abs(counts - 2000).max() < 5 * np.sqrt(2000)


def test_shares_are_of_the_beta_distribution():
    shares = np.array([BatchRng(1, 0, step, 0, 1).beta_of_batch("mixup", 2.0) for step in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(0.05, abs=0.005)  # 1 / (4 (2 a + 1))
