"""Which checkpoints are written, and which of them stay."""

from types import SimpleNamespace

import pytest
import torch

from dist_prune.engine.checkpoint import Checkpoint, save_checkpoint
from dist_prune.engine.saving import Saving, note_best
from dist_prune.engine.setting import Position


def setting(every=None, minutes=None):
    config = SimpleNamespace(checkpoint_every=every, checkpoint_minutes=minutes)
    return SimpleNamespace(config=config, steps_per_epoch=5)


def record(save: bool = False):
    return SimpleNamespace(save=save)


def save(folder, step: int, **options) -> None:
    save_checkpoint(folder, Checkpoint({"w": torch.zeros(1)}, {}, {}), step, **options)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_so_many_steps_but_not_at_the_end_of_an_epoch_which_brings_its_own():
    saving = Saving(setting(every=2))
    due = [
        step
        for step in range(1, 11)
        if saving.is_due(Position(step=step, batch=(step - 1) % 5 + 1), record())
    ]
    assert due == [2, 4, 6, 8]


def test_after_so_many_minutes_rank_0_tells_all_with_the_step(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("dist_prune.engine.saving.time.monotonic", lambda: now[0])
    saving = Saving(setting(minutes=2))
    assert not saving.is_time()
    now[0] += 119
    assert not saving.is_time()
    now[0] += 1
    assert saving.is_time()
    assert saving.is_due(Position(step=1, batch=1), record(save=True)), "what the step says, on every rank"
    assert not saving.is_due(Position(step=1, batch=1), record(save=False))
    monkeypatch.setattr("dist_prune.engine.saving.distributed.is_main", lambda: False)
    assert not saving.is_time(), "one clock decides"


def test_the_last_so_many_stay(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["latest", "step-00000003", "step-00000004", "step-00000005"]


def test_the_best_stays_too_and_has_a_pointer(tmp_path):
    for step, best in [(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5)]:
        save(tmp_path, step, keep=1, best=best)
        assert (tmp_path / "best").read_text() == f"step-{best:08d}\n"
        assert names(tmp_path) == sorted({"best", "latest", f"step-{best:08d}", f"step-{step:08d}"})


def test_what_a_resume_has_passed_over_goes_before_what_is_whole(tmp_path):
    """Steps later than the newest are of a run that was resumed before them, since they are damaged."""
    for step in (2, 4, 6):
        save(tmp_path, step, keep=3)
    save(tmp_path, 5, keep=2)
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000005"]


def test_the_best_epoch_is_the_first_with_the_highest_accuracy():
    at = Position()
    for step, accuracy in [(10, 0.5), (20, 0.8), (30, 0.8), (40, 0.7)]:
        at.step = step
        note_best(at, accuracy)
    assert (at.best_step, at.best_accuracy) == (20, 0.8)


def test_a_removal_that_is_cut_off_leaves_no_half_of_a_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)

    def cut_off(path, **_):
        if path.exists():
            (next(path.iterdir())).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("dist_prune.engine.checkpoint.shutil.rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
