"""How many steps may be skipped in a row, and what is said when there are more."""

import pytest

from dist_prune.checkpoints.train_state import Progress
from dist_prune.training.recorder import TrainingDiverged, refuse_too_many


def test_as_many_steps_in_a_row_as_allowed_are_skipped():
    refuse_too_many(Progress(step=7, bad_in_a_row=3), limit=3)


@pytest.mark.parametrize(
    ("count", "limit", "where"), [(4, 3, "the 4 steps up to 7"), (1, 0, "step 7"), (2, 0, "the 2 steps up to 7")]
)
def test_one_more_ends_the_run_with_the_steps_and_what_to_change(count, limit, where):
    with pytest.raises(TrainingDiverged, match=rf"not finite in {where}, more .* max_bad_steps={limit}: lower lr"):
        refuse_too_many(Progress(step=7, bad_in_a_row=count), limit)
