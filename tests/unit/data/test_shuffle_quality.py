"""How well the order mixes classes, against a permutation of all samples: 50,000 of 10 classes, as in CIFAR-10."""

import numpy as np
import pytest

from dist_prune.data.plan import Order

SAMPLES, CLASSES, GLOBAL_BATCH = 50_000, 10, 256
CLASS_BY_CLASS = np.arange(SAMPLES) * CLASSES // SAMPLES
SHUFFLED = np.random.RandomState(0).permutation(CLASS_BY_CLASS)  # as our shards are, when they are made


def labels_of_an_epoch(stored: np.ndarray, shard: int) -> np.ndarray:
    """Labels (steps, global batch) in the order of training, for labels stored in shards of so many samples."""
    order = Order((shard,) * (SAMPLES // shard), seed=1, epoch=0, global_batch=GLOBAL_BATCH)
    parts = [order.part(step, 0, GLOBAL_BATCH) for step in range(order.steps)]
    return np.stack([stored[part.shards * shard + part.rows] for part in parts])


def permuted() -> np.ndarray:
    whole = SAMPLES - SAMPLES % GLOBAL_BATCH
    return np.random.RandomState(1).permutation(CLASS_BY_CLASS)[:whole].reshape(-1, GLOBAL_BATCH)


def run_length(labels: np.ndarray) -> float:
    """The mean number of neighbors of one class in a row."""
    flat = labels.ravel()
    return len(flat) / (1 + (flat[1:] != flat[:-1]).sum())


def imbalance(labels: np.ndarray) -> float:
    """The mean share of a batch that would have to change its class for all classes to be equally frequent."""
    shares = np.stack([np.bincount(batch, minlength=CLASSES) for batch in labels]) / GLOBAL_BATCH
    return np.abs(shares - 1 / CLASSES).sum(axis=1).mean() / 2


@pytest.mark.parametrize("shard", [500, 1000, 5000])
def test_shards_that_were_shuffled_when_made_are_read_as_well_mixed_as_by_a_permutation_of_all(shard):
    found, best = labels_of_an_epoch(SHUFFLED, shard), permuted()
    assert run_length(found) == pytest.approx(run_length(best), rel=0.02)
    assert imbalance(found) == pytest.approx(imbalance(best), rel=0.06)


@pytest.mark.parametrize("shard", [500, 1000, 5000])
def test_shards_that_hold_one_class_each_still_give_batches_of_many_classes(shard):
    found = labels_of_an_epoch(CLASS_BY_CLASS, shard)
    assert imbalance(CLASS_BY_CLASS[: found.size].reshape(found.shape)) > 0.85  # read one after another
    assert imbalance(found) < 0.25
    assert run_length(found) < 4
