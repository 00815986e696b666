"""The phase of a checkpoint, found again for a resume or an offline command."""

from __future__ import annotations

import pytest
import torch

from dist_prune.checkpoints.train_state import Progress, TrainState
from dist_prune.config import override
from dist_prune.errors import UserError
from dist_prune.methods import METHODS, Task
from dist_prune.recipes import recipe
from dist_prune.training.context import interrupted_phase


def test_a_checkpoint_that_lacks_the_state_of_its_phase_is_refused_in_one_line():
    config = override(recipe("digits"), ["model=resnet8", "epochs=4"])
    method = METHODS[config.method](Task(config, 10, (1, 8, 8)))
    phase = next(method.phases())
    state = TrainState(Progress(phase=phase.name), {}, {}, phase_state={"budget.rate": torch.tensor(0.5)})
    with pytest.raises(UserError, match=rf"lacks what phase '{phase.name}' needs to go on: ") as refused:
        interrupted_phase(method.phases(), state, 1)
    assert "\n" not in str(refused.value)
