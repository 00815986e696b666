"""The same command given a second time, while the first still trains."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import STEPS, AtFinish, AtStep, SignalToSelf, assert_same_course, status

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class WaitFor:
    """Holds this rank up until there is a file."""

    path: Path

    def __call__(self) -> None:
        while not self.path.exists():
            time.sleep(0.02)


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(launch, straight, tmp_path):
    folder, link = tmp_path / "run", tmp_path / "link"
    link.symlink_to(folder)
    hold = AtStep(3, WaitFor(tmp_path / "refused"))
    first = launch(folder, "--max_steps", str(STEPS), sabotage={0: hold})
    while not (folder / "metrics.jsonl").exists():
        assert all(process.is_alive() for process in first.processes), first.told()
        time.sleep(0.02)
    told = launch(link, "--resume").last_words(2, 2)
    assert f"process {first.processes[0].pid} of this machine is training in {link}" in told
    (tmp_path / "refused").touch()
    assert first.wait() == [3, 3], first.told()
    assert_same_course(folder, straight)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "tensorboard" not in str(path)}


@pytest.mark.parametrize(("finished", "at_finish"), [(False, False), (True, False), (True, True)])
def test_ranks_that_wake_up_after_their_run_was_continued_elsewhere_stop_and_change_nothing(
    launch, resume, straight, tmp_path, finished, at_finish
):
    folder, link = tmp_path / "run", tmp_path / "frozen"
    folder.mkdir()
    link.symlink_to(folder)
    stop = SignalToSelf(signal.SIGSTOP)
    freeze = AtFinish(stop) if at_finish else AtStep(4, stop)
    frozen = launch(link, sabotage={0: freeze, 1: freeze})
    pids = [process.pid for process in frozen.processes]
    while not all(map(is_stopped, pids)):
        assert frozen.wait(0.1) == [None, None], frozen.told()
    # As if they were frozen on another machine, whose lock stays.
    lock = json.loads((folder / "run.lock").read_text())
    (folder / "run.lock").write_text(json.dumps({**lock, "boot": "another", "host": "node7"}))
    if finished:
        continued = launch(folder, "--resume")
        assert continued.wait() == [0, 0], continued.told()
    else:
        resume(folder)
    before = contents(folder)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    told = frozen.last_words(1, 1)
    assert f"another process has continued the run in {link}: this one stops and writes nothing" in told
    assert status(folder)["state"] == ("done" if finished else "stopped")
    assert contents(folder) == before
    if not finished:
        assert_same_course(folder, straight)
