"""kill -9 at moments that nobody chose: of one rank at a random step, of all while a checkpoint is written."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from drill import AtStep, SignalToSelf, assert_same_course

from dist_prune.checkpoints.format import load_newest

pytestmark = pytest.mark.drill


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_rank_killed_at_a_random_step_costs_nothing_that_was_saved(launch, resume, straight, tmp_path, seed):
    chance = random.Random(seed)
    folder, victim, step = tmp_path / "run", chance.randrange(2), chance.randint(1, 6)
    ranks = launch(folder, "--max_steps", "6", sabotage={victim: AtStep(step, SignalToSelf(signal.SIGKILL))})
    codes = ranks.wait()
    assert sorted(codes) == [-signal.SIGKILL, 1], ranks.told()
    resume(folder)
    assert_same_course(folder, straight)


def wait_for_writing(folder: Path, ranks, number: int) -> None:
    """Wait until the ranks are in the middle of writing a checkpoint, for the ``number``-th time."""
    deadline, seen = time.monotonic() + 240, set()
    while len(seen) < number:
        seen |= set(folder.glob(".step-*.tmp"))
        assert time.monotonic() < deadline, ranks.told()
        assert all(process.is_alive() for process in ranks.processes), ranks.told()


@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_while_it_writes_a_checkpoint_ends_as_if_nothing_had_been(launch, tmp_path):
    folder, chance = tmp_path / "run", random.Random(7)
    settings = ("checkpoint_every=1", "epochs=50")
    newest, cut_off = 0, 0
    for _ in range(20):
        leftovers = set((folder / "checkpoints").glob(".step-*.tmp"))
        ranks = launch(folder, "--resume", settings=settings)
        wait_for_writing(folder / "checkpoints", ranks, len(leftovers) + chance.randint(1, 3))
        time.sleep(chance.uniform(0, 0.02))
        ranks.end()
        cut_off += bool(set((folder / "checkpoints").glob(".step-*.tmp")) - leftovers)
        found, passed_over = load_newest(folder / "checkpoints")
        assert passed_over == []
        if found is not None:
            assert found.progress.step >= newest
            newest = found.progress.step
    assert cut_off >= 5, "many kills must have hit a checkpoint that was being written"
    last = newest + 2
    ranks = launch(folder, "--resume", "--max_steps", "2", settings=settings)
    assert ranks.wait() == [3, 3], ranks.told()
    ranks = launch(tmp_path / "straight", "--max_steps", str(last), settings=settings)
    assert ranks.wait() == [3, 3], ranks.told()
    assert_same_course(folder, tmp_path / "straight")
    assert not list((folder / "checkpoints").glob(".*")), "leftovers are gone with the next checkpoint"
