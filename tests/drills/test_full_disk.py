"""A disk of the real kind that is full, or turns read-only, under a run; needs root to mount one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import AtStep, assert_same_course

from dist_prune.checkpoints.format import load_newest

pytestmark = pytest.mark.drill


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@dataclass(frozen=True)
class Fill:
    """Leaves so many bytes free on the disk."""

    disk: Path
    free: int

    def __call__(self) -> None:
        with open(self.disk / "filling", "wb") as file:
            file.write(b"\0" * (os.statvfs(self.disk).f_bavail * os.statvfs(self.disk).f_bsize - self.free))


@dataclass(frozen=True)
class MakeReadOnly:
    disk: Path

    def __call__(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.disk)], check=True)


@pytest.mark.parametrize("free", [0, 300_000])
def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_once_there_is_room(
    launch, resume, straight, small_disk, tmp_path, free
):
    folder = tmp_path / "run"
    folder.symlink_to(small_disk / "run")
    (small_disk / "run").mkdir()
    ranks = launch(folder, sabotage={0: AtStep(4, Fill(small_disk, free))})
    told = ranks.last_words(1, 1)
    assert told.startswith(f"error: cannot write to the run folder {folder}: No space left on device; make room (0.")
    found, passed_over = load_newest(folder / "checkpoints")
    assert (found.progress.step, passed_over) == (2, [])
    assert not list((folder / "checkpoints").glob(".*")), "what could not be written is gone, and its room is free"
    (small_disk / "filling").unlink()
    resume(folder)
    assert_same_course(folder, straight)


def test_a_disk_that_turns_read_only_ends_the_run_with_one_line(launch, resume, straight, small_disk, tmp_path):
    folder = tmp_path / "run"
    folder.symlink_to(small_disk / "run")
    (small_disk / "run").mkdir()
    ranks = launch(folder, sabotage={0: AtStep(3, MakeReadOnly(small_disk))})
    told = ranks.last_words(1, 1)
    assert "Read-only file system; fix that, then continue with --resume" in told
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    resume(folder)
    assert_same_course(folder, straight)
