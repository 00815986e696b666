"""A run resumes with another number of ranks, or at another ZeRO stage, as the uninterrupted one would have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from drill import losses

from dist_prune.checkpoints.format import load_newest

pytestmark = pytest.mark.drill


def assert_nearly_same_course(folder: Path, straight: Path) -> None:
    """Other ranks add up in another order: losses and weights agree within what rounding grows to in six steps."""
    assert [loss for _, loss in losses(folder)] == pytest.approx([loss for _, loss in losses(straight)], rel=1e-4)
    (mine, _), (theirs, _) = load_newest(folder / "checkpoints"), load_newest(straight / "checkpoints")
    for name, state in theirs.model.optimizer_state.items():  # norms have seen as many batches as ranks made
        torch.testing.assert_close(mine.model.weights[name], theirs.model.weights[name], rtol=1e-3, atol=1e-4, msg=name)
        torch.testing.assert_close(mine.model.optimizer_state[name], state, rtol=1e-2, atol=1e-3, msg=name)


def test_a_run_goes_on_from_two_ranks_to_one_and_to_four(launch, tmp_path):
    """Micro-batches of 32 whatever the ranks: batch norm is local, so it must see the same images together."""
    ds = tmp_path / "ds.json"
    ds.write_text(json.dumps({"zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": 32}))
    # Gate means are those of a step's micro-batches so far; without loss terms on them, nothing depends on that.
    words = ("--ds_config", str(ds))
    settings = ("target_macs=null", "polarization=0")
    straight, folder = tmp_path / "straight", tmp_path / "run"
    ranks = launch(straight, *words, "--max_steps", "6", settings=settings)
    assert ranks.wait() == [3, 3], ranks.told()
    for world_size in (2, 1, 4):
        ranks = launch(folder, *words, "--resume", "--max_steps", "2", settings=settings, world_size=world_size)
        assert ranks.wait() == [3] * world_size, ranks.told()
    assert_nearly_same_course(folder, straight)


def test_a_run_goes_on_from_zero_1_to_2_and_to_3(launch, straight, tmp_path):
    folder = tmp_path / "run"
    for ds in ("zero1", "zero2", "zero3"):
        ranks = launch(folder, "--resume", "--max_steps", "2", ds=ds)
        assert ranks.wait() == [3, 3], ranks.told()
    assert_nearly_same_course(folder, straight)
