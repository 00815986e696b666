"""A process killed while it compiles, at the first start on a machine: the next start compiles, and trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drill import ROOT, SETTINGS

pytestmark = pytest.mark.drill


def start(folder: Path, data_home: Path) -> subprocess.Popen[str]:
    """One rank that finds nothing compiled, with its compilers in a process group of its own."""
    environment = {
        **os.environ,
        "DIST_PRUNE_DATA": str(data_home),
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": str(folder / "compiled"),
    }
    words = [sys.executable, "launch/train.py", "--ds_config", "ds_configs/zero2.json"]
    words += ["--out", str(folder / "run"), "--max_steps", "1", "--set", *SETTINGS]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_the_start_after_a_killed_compilation_compiles_and_trains(data_home, tmp_path):
    first = start(tmp_path, data_home)
    try:
        while not list(tmp_path.rglob("build.ninja")):
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.1)
        time.sleep(2)
        assert not list(tmp_path.rglob("*.so")), "it was killed in the middle of compiling"
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    second = start(tmp_path, data_home)
    try:
        _, told = second.communicate(timeout=600)
    finally:
        second.kill()
    assert second.returncode == 3, told
    assert list(tmp_path.rglob("dist_prune_kernels*.so"))
