"""What torch's generator gives (dropout) is drawn anew in a resumed run as the uninterrupted one had it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch.nn.functional as F
from drill import assert_same_course

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class DropLogits:
    """Dropout at the end of the network, which draws from the global generator."""

    def __call__(self) -> None:
        from dist_prune.methods.consensus import GatedPhase

        real = GatedPhase.task_loss
        GatedPhase.task_loss = lambda phase, logits, labels: real(phase, F.dropout(logits, 0.5), labels)


def test_a_resumed_run_with_dropout_is_the_uninterrupted_one(launch, tmp_path):
    sabotage = {0: DropLogits(), 1: DropLogits()}
    for folder, words in [("straight", ("5",)), ("halted", ("2",)), ("halted", ("3", "--resume"))]:
        ranks = launch(tmp_path / folder, "--max_steps", *words, sabotage=sabotage)
        assert ranks.wait() == [3, 3], ranks.told()
    assert_same_course(tmp_path / "halted", tmp_path / "straight")
