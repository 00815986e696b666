"""One run at a time in a folder; the claim ends with the process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from dist_prune.errors import UserError
from dist_prune.runtime.run_lock import lock_run_folder

HOLD = """
import os, sys, time
from dist_prune.runtime.run_lock import lock_run_folder
held = lock_run_folder(sys.argv[1])
child = os.fork() or time.sleep(60)
print("holds", child, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked the folder ``run``; its child outlives it for a minute."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    word, child = process.stdout.readline().split()
    assert word == "holds"
    yield process
    process.kill()
    os.kill(int(child), signal.SIGKILL)


def test_a_folder_that_another_process_has_locked_is_refused_by_all_its_names(holder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in ("run", "link"):
        with pytest.raises(UserError, match=f"process {holder.pid} of this machine is training in .*{name}"):
            lock_run_folder(tmp_path / name)
    lock_run_folder(tmp_path / "other").close()


def test_a_folder_is_free_as_soon_as_its_process_is_dead_whatever_its_children_do(holder, tmp_path):
    holder.kill()
    holder.wait(timeout=30)
    lock_run_folder(tmp_path / "run").close()


def test_a_folder_is_free_when_the_claim_is_given_up(tmp_path):
    lock_run_folder(tmp_path / "run").close()
    code = "import sys; from dist_prune.runtime.run_lock import lock_run_folder; lock_run_folder(sys.argv[1]).close()"
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], check=True, timeout=120)


def test_without_room_for_temporary_files_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert lock_run_folder(tmp_path / "run") is None
