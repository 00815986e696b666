"""A rank that is killed or hangs ends the others in a bounded time, one of which says which it was."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from drill import AtStep, SignalToSelf, assert_same_course, status
from ranks import free_port

from dist_prune.errors import UserError

LONG = pytest.mark.drill


def kill(launch, folder: Path, victim: int, world_size: int) -> None:
    """Kill a rank in its fourth step; the others must end soon, with one line that names it."""
    sabotage = {victim: AtStep(4, SignalToSelf(signal.SIGKILL))}
    ranks = launch(folder, world_size=world_size, sabotage=sabotage)
    codes = ranks.wait()
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(world_size)], ranks.told()
    assert max(ranks.ended.values()) - ranks.ended[victim] < 15
    told = ranks.told()
    assert len(told) == 1, told
    pid = ranks.processes[victim].pid
    assert re.match(rf"error: the run has lost rank {victim} \(process {pid} on .*\), which is gone", told[0])
    assert not list(Path("/dev/shm").glob(f"sem.*-{pid}-*")), "a killed rank leaves no lock of a library"
    said = status(folder)
    assert (said["state"], said["last_step"], f"error: {said['reason']}") == ("failed", 3, told[0])


def test_a_killed_rank_ends_the_others_with_one_line(launch, tmp_path):
    kill(launch, tmp_path / "run", victim=1, world_size=2)


@LONG
@pytest.mark.parametrize(("victim", "world_size"), [(1, 2), (0, 2), (2, 4), (0, 4)])
def test_a_killed_rank_costs_nothing_that_was_saved(launch, resume, straight, tmp_path, victim, world_size):
    folder = tmp_path / "run"
    kill(launch, folder, victim, world_size)
    resume(folder, world_size=world_size)
    if world_size == 2:
        assert_same_course(folder, straight)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@LONG
@pytest.mark.parametrize("victim", [1, 0])
def test_a_hung_rank_ends_the_others_after_rank_timeout(launch, resume, straight, tmp_path, victim):
    folder = tmp_path / "run"
    sabotage = {victim: AtStep(4, SignalToSelf(signal.SIGSTOP))}
    ranks = launch(folder, settings=("checkpoint_every=2", "rank_timeout=20"), sabotage=sabotage)
    try:
        while not ranks.processes[victim].pid or not is_stopped(ranks.processes[victim].pid):
            assert ranks.wait(0.1) == [None, None], ranks.told()
        began = time.monotonic()
        while 1 - victim not in ranks.ended:
            codes = ranks.wait(0.2)
        assert codes[1 - victim] == 1
        assert codes[victim] is None
        assert time.monotonic() - began < 20 + 25
        told = ranks.told()
        assert len(told) == 1, told
        assert re.match(rf"error: the run has lost rank {victim} \(process .*\), which is stopped", told[0])
        assert f"error: {status(folder)['reason']}" == told[0]
    finally:
        os.kill(ranks.processes[victim].pid, signal.SIGKILL)
    resume(folder)
    assert_same_course(folder, straight)


@dataclass(frozen=True)
class AskForMuch:
    """A request for memory that the system has to refuse."""

    def __call__(self) -> None:
        torch.empty(2**60, dtype=torch.uint8)


@LONG
def test_a_rank_without_memory_says_which_setting_to_lower_and_ends_the_others(launch, resume, straight, tmp_path):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={1: AtStep(4, AskForMuch())})
    told = ranks.last_words(1, 1)
    assert told.startswith("error: rank 1 is out of memory: lower train_micro_batch_size_per_gpu in the DeepSpeed")
    resume(folder)
    assert_same_course(folder, straight)


@dataclass(frozen=True)
class DieBefore:
    """Kills this rank when it calls a function of the start of a run."""

    function: str

    def __call__(self) -> None:
        from dist_prune.training import run

        setattr(run, self.function, lambda *_: SignalToSelf(signal.SIGKILL)())


@LONG
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("function", ["start_process_group", "agree_to_start", "build_method", "find_checkpoint"])
def test_a_rank_that_is_killed_between_meeting_and_first_step_ends_the_others_with_one_line(
    launch, tmp_path, function, victim
):
    settings = ("global_batch_size=126", "rank_timeout=6")
    ranks = launch(tmp_path / "run", world_size=3, settings=settings, sabotage={victim: DieBefore(function)})
    assert ranks.wait(60) == [-signal.SIGKILL if r == victim else 1 for r in range(3)], ranks.told()
    (told,) = ranks.told()
    assert told.startswith(f"error: the run has lost rank {victim} (process {ranks.processes[victim].pid} on ")


@LONG
@pytest.mark.parametrize(("victim", "line"), [
    (1, "rank {} cannot meet the others at 127.0.0.1:{}: rank 1 did not come within 4 s (rank_timeout)"),
    (0, "rank {} cannot meet the others at 127.0.0.1:{}: rank 0 cannot be reached there: it has not started, it has"),
])  # fmt: skip
def test_a_rank_that_is_killed_while_kernels_are_compiled_ends_the_others_with_one_line(launch, tmp_path, victim, line):
    sabotage = {victim: DieBefore("compile_kernels")}
    port = free_port()
    ranks = launch(tmp_path / "run", world_size=3, settings=("rank_timeout=4",), sabotage=sabotage, port=port)
    assert ranks.wait(60) == [-signal.SIGKILL if r == victim else 1 for r in range(3)], ranks.told()
    (told,) = ranks.told()
    assert any(told.startswith(f"error: {line.format(rank, port)}") for rank in range(3)), told


@dataclass(frozen=True)
class Mistype:
    """Gives this rank alone another command line."""

    def __call__(self) -> None:
        from dist_prune import recipes

        def refuse(name: str) -> None:
            raise UserError(f"no recipe {name} here")

        recipes.recipe = refuse


@LONG
def test_a_mistake_of_one_rank_before_they_meet_is_one_line(launch, tmp_path):
    ranks = launch(tmp_path / "run", world_size=2, sabotage={1: Mistype()})
    assert ranks.wait(60) == [1, 2], ranks.told()
    assert ranks.told() == ["error: rank 1 has ended at its start: error: no recipe digits here"]
