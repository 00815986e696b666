"""Which checkpoints are written, and which of them stay; training continues in the meantime."""

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from dist_prune.checkpoints.format import save_checkpoint
from dist_prune.checkpoints.train_state import ModelState, Origin, Progress, TrainState
from dist_prune.checkpoints.writer import CheckpointWriter
from dist_prune.monitor.records import RunFolder

DATA = {"fingerprint": "abc", "shard_lengths": {}}
ORIGIN: Origin = {"recipe": {}, "ds_config": {}, "micro_batch": 8, "versions": {}}


def writer(every=None, minutes=None) -> CheckpointWriter:
    config = SimpleNamespace(checkpoint_every=every, checkpoint_minutes=minutes, keep_best=False, keep_checkpoints=2)
    return CheckpointWriter(RunFolder("run"), config, contextlib.nullcontext)


def state(step: int, best: int | None = None) -> TrainState:
    return TrainState(Progress(step=step, best_step=best), DATA, ORIGIN, model=ModelState({"w": torch.zeros(1)}))


def save(folder, step: int, keep: int, best: int | None = None) -> None:
    save_checkpoint(folder, state(step, best), keep, keep_best=best is not None)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_due_every_so_many_steps():
    assert [step for step in range(1, 9) if writer(every=3).is_due(step)] == [3, 6]
    assert not any(writer().is_due(step) for step in range(1, 9))


def test_after_so_many_minutes_rank_0_tells_all_with_the_step(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("dist_prune.checkpoints.writer.time.monotonic", lambda: now[0])
    saving = writer(minutes=2)
    assert not saving.check()
    now[0] += 119
    assert not saving.check()
    now[0] += 1
    assert saving.check()
    monkeypatch.setattr("dist_prune.checkpoints.writer.distributed.is_main", lambda: False)
    assert not saving.check(), "one clock decides"


class SlowDisk:
    """Stands in for the writer of checkpoints: begins, and continues when it is told to."""

    def __init__(self) -> None:
        self.begun, self.may_go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[int] = []

    def __call__(self, folder, state: TrainState, keep: int, keep_best: bool, check_owner) -> None:
        self.begun.release()
        assert self.may_go_on.acquire(timeout=20)
        self.written.append(state.progress.step)


@pytest.fixture
def slow_disk(monkeypatch) -> SlowDisk:
    disk = SlowDisk()
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", disk)
    return disk


def test_training_continues_while_a_checkpoint_is_written(slow_disk):
    with writer() as saving:
        saving.write(state(2))
        assert slow_disk.begun.acquire(timeout=20)
        assert slow_disk.written == []
        slow_disk.may_go_on.release()
    assert slow_disk.written == [2]


def test_a_checkpoint_waits_until_the_one_before_is_written_and_the_end_for_the_last(slow_disk):
    with writer() as saving:
        saving.write(state(2))
        threading.Timer(0.2, slow_disk.may_go_on.release).start()
        saving.write(state(4))
        assert slow_disk.written == [2]
        threading.Timer(0.2, slow_disk.may_go_on.release).start()
    assert slow_disk.written == [2, 4]


def fail(saving: CheckpointWriter) -> None:
    saving.write(state(2))
    deadline = time.monotonic() + 20
    while not saving._written.done() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_what_nobody_foresaw_while_writing_is_raised_with_the_next_step_or_at_the_end(monkeypatch):
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", lambda *_: 1 / 0)
    saving = writer()
    fail(saving)
    with pytest.raises(ZeroDivisionError):
        saving.check()
    fail(saving)
    with pytest.raises(ZeroDivisionError), saving:
        pass


def test_what_ends_a_run_is_not_hidden_by_what_hinders_the_writing(monkeypatch):
    monkeypatch.setattr("dist_prune.checkpoints.writer.save_checkpoint", lambda *_: 1 / 0)
    saving = writer()
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


def test_later_checkpoints_stay(tmp_path):
    """A resume could not read them; they may be intact all the same."""
    for step in (2, 4, 6):
        save(tmp_path, step, keep=3)
    save(tmp_path, 5, keep=2)
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000005", "step-00000006"]


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
