"""Snapshots do not depend on ZeRO stage or world size; buffers and masks are equal on all ranks."""

from __future__ import annotations

import pickle

import pytest
import scenarios
import torch
from ranks import run_ranks


def assert_equal_snapshots(a, b, tolerance):
    assert a.weights.keys() == b.weights.keys()
    assert a.optimizer_state.keys() == b.optimizer_state.keys()
    assert a.optimizer_state, "the optimizer's state was lost"
    torch.testing.assert_close(b.weights, a.weights, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(b.optimizer_state, a.optimizer_state, rtol=tolerance, atol=tolerance)


# The optimizer has two parameter groups (gates and norms without weight decay), where DeepSpeed's own
# linking of lazily created states stops after the first.
@pytest.mark.parametrize(
    ("optimizer", "first", "second"),
    [("sgd", 2, 2), ("sgd", 1, 3), ("sgd", 3, 0), ("adamw", 0, 0), ("adamw", 2, 3), ("adamw", 3, 2)],
)
def test_training_continues_from_a_snapshot_at_another_stage_and_world_size(optimizer, first, second):
    ranks = run_ranks(2, scenarios.train_then_continue, optimizer, first, second)
    for rank in ranks:
        assert_equal_snapshots(rank["straight"], rank["again"], 1e-6)
        assert_equal_snapshots(rank["straight"], ranks[0]["straight"], 0)
    alone = run_ranks(1, scenarios.continue_from, optimizer, pickle.dumps(ranks[0]["snapshot"]), second)[0]
    assert_equal_snapshots(ranks[0]["straight"], alone, 1e-6)


def test_buffers_and_masks_are_equal_on_all_ranks():
    first, second = run_ranks(2, scenarios.buffers_and_masks)
    assert not torch.equal(first["before"], second["before"]), "the ranks must have seen different data"
    for name, buffer in first["after"].items():
        assert torch.equal(buffer, second["after"][name]), name
    torch.testing.assert_close(first["after"]["bn1.running_mean"], (first["before"] + second["before"]) / 2)
    assert first["split"] == second["split"]
    assert first["all on rank 0"] == second["all on rank 0"]
    assert [s.kept for s in first["split"].sites] == [s.kept for s in first["all on rank 0"].sites]
    for a, b in zip(first["split"].sites, first["all on rank 0"].sites, strict=True):
        assert a.mean_activation == pytest.approx(b.mean_activation, abs=1e-12)
