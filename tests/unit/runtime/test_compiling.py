"""What is compiled on first use: a process that is killed while compiling holds up no other."""

import ctypes
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from dist_prune.runtime.environment import _Lock

HOLDER = """
import sys, time
from dist_prune.runtime.environment import _Lock
lock = _Lock(sys.argv[1])
lock.try_acquire()
print("holds", flush=True)
time.sleep(300)
"""
BUILDER = """
import sys
from torch.utils.cpp_extension import load
from dist_prune.runtime.environment import guard_compilation
guard_compilation()
load("small", [sys.argv[1] + "/small.cpp"], build_directory=sys.argv[1], is_python_module=False)
"""


def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path):
    path = str(tmp_path / "lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "holds\n"
        with pytest.raises(Timeout):
            FileLock(f"{path}.held").acquire(blocking=False)
    finally:
        holder.kill()
        holder.communicate()
    lock = _Lock(path)
    assert lock.try_acquire()
    lock.release()
    with FileLock(f"{path}.held").acquire(blocking=False):
        pass


@pytest.mark.drill  # It compiles, for ten seconds; the lock itself is tested above.
def test_what_a_killed_compilation_has_left_is_passed_over(tmp_path):
    """The file that locks in torch 2.11 and before, and nobody will remove."""
    (tmp_path / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    (tmp_path / "lock").touch()
    done = subprocess.run(
        [sys.executable, "-c", BUILDER, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ctypes.CDLL(str(tmp_path / "small.so")).answer() == 42
