"""The same command given a second time, while the first still trains."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import STEPS, AtStep, assert_same_course

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
