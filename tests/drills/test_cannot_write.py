"""A run folder that cannot be written to from the start, and a disk that fails while a checkpoint is written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import AtStep, assert_same_course

pytestmark = pytest.mark.drill


@dataclass(frozen=True)
class CannotSync:
    """From now on, what this process writes does not arrive on the disk ("Input/output error")."""

    def __call__(self) -> None:
        def refuse(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        os.fsync = refuse


def test_a_disk_that_fails_as_a_checkpoint_is_written_ends_the_run_with_one_line(launch, resume, straight, tmp_path):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={0: AtStep(4, CannotSync())})
    told = ranks.last_words(1, 1)
    assert told.startswith(f"error: cannot write to the run folder {folder}: Input/output error; fix that")
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["latest", "step-00000002"]
    resume(folder)
    assert_same_course(folder, straight)


@pytest.fixture
def unwritable(tmp_path) -> Iterator[Path]:
    """A folder in which nobody may write: for root, who may everything, on a disk that is mounted so."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("root without the right to mount: no folder is unwritable")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_run_folder_that_cannot_be_written_to_is_refused_by_all_ranks_with_one_line(launch, unwritable):
    ranks = launch(unwritable / "run")
    told = ranks.last_words(2, 2)
    assert told.startswith(f"error: cannot write to the run folder {unwritable / 'run'}: ")
