"""The learning rate of a resumed run is that of the uninterrupted one, in every step, through a real checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from commands import records
from ranks import run_ranks
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from dist_prune.recipes import recipe

EPOCHS, STEPS, BATCH = 3, 4, 359  # 1437 images of digits
KINDS = {
    "steps": lambda o: MultiStepLR(o, [STEPS, 2 * STEPS], 0.1),
    "cosine": lambda o: CosineAnnealingLR(o, EPOCHS * STEPS),
    "one_cycle": lambda o: OneCycleLR(o, 0.1, total_steps=EPOCHS * STEPS, cycle_momentum=False),
}


def run_dense(folder: str, kind: str, *invocations: dict[str, Any]) -> list[bool]:
    from dist_prune.config import override
    from dist_prune.training.run import Options, run

    settings = [
        "method=dense", f"epochs={EPOCHS}", "model=resnet8", "model_args.width=4", "log_every=1", "workers=0", "lr=0.1",
        f"global_batch_size={BATCH}", "mask_samples=64",
        f"lr_schedule.kind={kind}", "lr_schedule.milestones=[1,2]", "lr_schedule.gamma=0.1",
    ]  # fmt: skip
    config = override(recipe("digits"), settings)
    return [run(config, Options("ds_configs/zero2.json", out=folder, **words)) for words in invocations]


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_within_the_first_epoch_and_resumed(kind, tmp_path, data_folder):
    """Integer keys of a scheduler's state became text in state.json, so that no milestone was ever met again."""
    invocations = ({"max_steps": 2}, {"resume": True})
    assert run_ranks(1, run_dense, str(tmp_path), kind, *invocations) == [[False, True]]
    seen = [record["optimizer/lr"] for record in records(tmp_path, "train")]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, expected = KINDS[kind](optimizer), []
    for _ in range(EPOCHS * STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx(expected, rel=1e-9)
