"""A loss or gradients that are not finite on one rank: the step is skipped on all of them, told, and limited."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from drill import AtStep

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class Poison:
    """From now on, or in one step only, the task loss of this rank is not finite, or its gradients are not."""

    what: str
    once: bool = True

    def __call__(self) -> None:
        from dist_prune.methods.consensus import GatedPhase

        real = GatedPhase.task_loss

        def task_loss(phase, logits, labels):
            if self.once:
                GatedPhase.task_loss = real
            loss = real(phase, logits, labels)
            if self.what == "loss":
                return loss + float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

        GatedPhase.task_loss = task_loss


def checkpoint(folder, step: int) -> dict[str, torch.Tensor]:
    from dist_prune.checkpoints.format import load_checkpoint

    return load_checkpoint(folder / "checkpoints" / f"step-{step:08d}").model.weights


CASES = [(ds, what) for ds in ("zero0", "zero1", "zero2", "zero3") for what in ("loss", "gradients")]


@pytest.mark.parametrize(("ds", "what"), CASES)
def test_a_bad_step_of_one_rank_changes_nothing_on_any_rank(launch, tmp_path, ds, what):
    folder = tmp_path / "run"
    settings = ("checkpoint_every=1", "keep_checkpoints=10", "target_macs=0.6")
    ranks = launch(folder, "--max_steps", "5", ds=ds, settings=settings, sabotage={1: AtStep(3, Poison(what))})
    assert ranks.wait() == [3, 3], ranks.told()
    before, after, next_one = (checkpoint(folder, step) for step in (2, 3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before), "weights, buffers and the gates' budget"
    assert any(not torch.equal(after[name], next_one[name]) for name in after), "and then training continues"
    assert all(tensor.isfinite().all() for tensor in next_one.values())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["steps_skipped"] for line in lines] == [0, 0, 1, 1, 1]
    assert (lines[2]["loss/total"] is None) == (what == "loss")
    skipped = lines[2]["skipped_batch"]
    assert sum(len(rows) for rows in skipped.values()) == 128, "the global batch"
    assert all(name.startswith("digits-train-") for name in skipped)


def test_too_many_bad_steps_in_a_row_end_the_run_with_one_line(launch, tmp_path):
    folder = tmp_path / "run"
    settings = ("checkpoint_every=2", "max_bad_steps=3")
    ranks = launch(folder, settings=settings, sabotage={1: AtStep(4, Poison("loss", once=False))})
    told = ranks.last_words(1, 1)
    assert "not finite in the 4 steps up to 7, more in a row than max_bad_steps=3: lower lr" in told
