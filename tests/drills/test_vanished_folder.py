"""A run folder that is moved away, or unmounted, while its run trains; and one that belongs to somebody else."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import STEPS, AtStep, assert_same_course

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class MoveAway:
    """Moves a folder, and back at once if it ``returns``."""

    folder: Path
    away: Path
    returns: bool

    def __call__(self) -> None:
        while self.returns and not (self.folder / "checkpoints" / "latest").exists():
            time.sleep(0.1)
        time.sleep(1)  # the checkpoint before is written
        self.folder.rename(self.away)
        if self.returns:
            self.away.rename(self.folder)


def test_a_run_whose_folder_vanishes_ends_with_one_line_and_is_resumed_once_it_is_back(
    launch, resume, straight, tmp_path
):
    folder, away = tmp_path / "run", tmp_path / "away"
    told = launch(folder, sabotage={0: AtStep(4, MoveAway(folder, away, returns=False))}).last_words(1, 1)
    assert told.startswith(f"error: cannot write to the run folder {folder}: No such file or directory; fix that")
    assert not folder.exists(), "nothing is made in its place"
    away.rename(folder)
    resume(folder)
    assert_same_course(folder, straight)


def test_a_run_whose_folder_vanishes_and_returns_between_two_writes_notices_nothing(launch, straight, tmp_path):
    folder = tmp_path / "run"
    sabotage = {0: AtStep(4, MoveAway(folder, tmp_path / "away", returns=True))}
    ranks = launch(folder, "--max_steps", str(STEPS), sabotage=sabotage)
    assert ranks.wait() == [3, 3], ranks.told()
    assert ranks.told() == []
    assert_same_course(folder, straight)


def _resume_as_nobody(folder: Path, told) -> None:
    from dist_prune.config import RunConfig
    from dist_prune.errors import UserError
    from dist_prune.recipes import recipe
    from dist_prune.training.run_folder import open_run_folder

    config: RunConfig = recipe("digits")
    os.setgid(65534)
    os.setuid(65534)
    try:
        with open_run_folder(config, str(folder), resume=True):
            told.put("opened")
    except UserError as error:
        told.put(str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_run_folder_of_somebody_else_is_refused_with_one_line_and_stays_as_it_is():
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chmod(home, 0o755)
        folder = Path(home, "run")
        folder.mkdir()
        (folder / "status.json").write_text('{"state": "stopped", "last_step": 1}')
        fork = multiprocessing.get_context("fork")
        told = fork.SimpleQueue()
        child = fork.Process(target=_resume_as_nobody, args=(folder, told))
        child.start()
        assert told.get() == f"cannot write to the run folder {folder}: Permission denied"
        child.join()
        assert [path.name for path in folder.iterdir()] == ["status.json"]
