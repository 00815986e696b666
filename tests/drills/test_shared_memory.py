"""A /dev/shm that is too small for anything, as in containers that do not set its size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from drill import ROOT, SETTINGS
from ranks import free_port

pytestmark = pytest.mark.drill
IN_SMALL = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && "$@"; code=$?; ls /dev/shm; exit $code'


def under_deepspeed(data_home: Path, folder: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """Train two steps on two ranks in a mount namespace of its own."""
    can_mount = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    if os.geteuid() != 0 or subprocess.run(can_mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root with the right to mount")
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port())]
    program = ["launch/train.py", "--ds_config", "ds_configs/zero2.json", "--out", str(folder), "--max_steps", "2"]
    environment = {**os.environ, "DIST_PRUNE_DATA": str(data_home), "OMP_NUM_THREADS": "1"}
    words = ["unshare", "-m", "sh", "-c", IN_SMALL, "sh", *launcher, *program, "--set", *SETTINGS, *settings]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_ranks_of_the_deepspeed_launcher_train_and_leave_nothing_in_shared_memory(data_home, tmp_path):
    ended = under_deepspeed(data_home, tmp_path / "run")
    assert ended.returncode == 3, ended.stderr
    assert "stopped: --max_steps 2 reached" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("["), "the last line is the launcher's: nothing is listed"


def test_data_workers_without_room_end_the_run_with_one_line_that_names_the_folder(data_home, tmp_path):
    ended = under_deepspeed(data_home, tmp_path / "run", "workers=2")
    assert ended.returncode == 1, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith(("error", "a worker", "Traceback"))]
    assert "/dev/shm is full or too small" in line
