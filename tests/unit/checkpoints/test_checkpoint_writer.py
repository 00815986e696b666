"""Which checkpoints are written, and which of them stay; training goes on in the meantime."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from dist_prune.checkpoints.format import Checkpoint, save_checkpoint
from dist_prune.checkpoints.writer import Saving, note_best
from dist_prune.training.context import Progress


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
        if saving.is_due(Progress(step=step, batch=(step - 1) % 5 + 1), record())
    ]
    assert due == [2, 4, 6, 8]


def test_after_so_many_minutes_rank_0_tells_all_with_the_step(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("dist_prune.checkpoints.writer.time.monotonic", lambda: now[0])
    saving = Saving(setting(minutes=2))
    assert not saving.is_time()
    now[0] += 119
    assert not saving.is_time()
    now[0] += 1
    assert saving.is_time()
    assert saving.is_due(Progress(step=1, batch=1), record(save=True)), "what the step says, on every rank"
    assert not saving.is_due(Progress(step=1, batch=1), record(save=False))
    monkeypatch.setattr("dist_prune.checkpoints.writer.distributed.is_main", lambda: False)
    assert not saving.is_time(), "one clock decides"


class SlowDisk:
    """Stands in for what writes checkpoints: begins, and goes on when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[tuple[int, dict]] = []

    def __call__(self, folder, checkpoint: Checkpoint, step: int, keep: int, best: int | None) -> None:
        self.begun.release()
        assert self.may_go_on.acquire(timeout=20)
        self.written.append((step, checkpoint.state))


@pytest.fixture
def slow_disk(monkeypatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", disk)
    return disk


def writable():
    config = SimpleNamespace(keep_best=False, keep_checkpoints=2, checkpoint_minutes=None)
    return SimpleNamespace(
        config=config, folder=SimpleNamespace(checkpoints=None), capture_write_errors=contextlib.nullcontext
    )


def test_training_goes_on_while_a_checkpoint_is_written(slow_disk):
    with Saving(writable()) as saving:
        state = {"structures": {"gated": 1}}
        saving.write(Checkpoint({}, {}, state), Progress(step=2))
        assert slow_disk.begun.acquire(timeout=20)
        state["structures"]["collapsed"] = 2
        assert slow_disk.written == []
        slow_disk.may_go_on.release()
    assert slow_disk.written == [(2, {"structures": {"gated": 1}})]


def test_a_checkpoint_waits_until_the_one_before_is_written_and_the_end_for_the_last(slow_disk):
    with Saving(writable()) as saving:
        saving.write(Checkpoint({}, {}, {}), Progress(step=2))
        threading.Timer(0.2, slow_disk.may_go_on.release).start()
        saving.write(Checkpoint({}, {}, {}), Progress(step=4))
        assert slow_disk.written == [(2, {})]
        threading.Timer(0.2, slow_disk.may_go_on.release).start()
    assert slow_disk.written == [(2, {}), (4, {})]


def fail(saving: Saving) -> None:
    saving.write(Checkpoint({}, {}, {}), Progress(step=2))
    deadline = time.monotonic() + 20
    while not saving._written.done() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_what_nobody_foresaw_while_writing_is_raised_with_the_next_step_or_at_the_end(monkeypatch):
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", lambda *_: 1 / 0)
    saving = Saving(writable())
    fail(saving)
    with pytest.raises(ZeroDivisionError):
        saving.check()
    fail(saving)
    with pytest.raises(ZeroDivisionError), saving:
        pass


def test_what_ends_a_run_is_not_hidden_by_what_hinders_the_writing(monkeypatch):
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", lambda *_: 1 / 0)
    saving = Saving(writable())
    fail(saving)
    with pytest.raises(RuntimeError, match="a rank is lost"), saving:
        raise RuntimeError("a rank is lost")


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
    at = Progress()
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

    monkeypatch.setattr("dist_prune.checkpoints.format.shutil.rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 3, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
