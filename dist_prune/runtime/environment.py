"""The process before it trains: variables that DeepSpeed reads, locks of what is compiled, threads and memory."""

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib
import torch
from filelock import FileLock

from dist_prune.runtime.folders import check_code_folder
from dist_prune.runtime.launch import ranks_per_node

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def prepare_environment() -> None:
    """Set the variables that DeepSpeed reads, unless the user has; call it before its import."""
    # Operations are compiled on first use by the ninja of this environment. An ssh session, where the environment is
    # not active, would not find it, or would find another version, which compiles everything again.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # One build folder for each environment: two that share one would rebuild at each start.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = hashlib.sha256(f"{sys.prefix} {torch.__version__}".encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions" / own))
    # Otherwise DeepSpeed searches for accelerators and prints what it finds.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    # torch's own default in the temporary folder needs a name of the user, which containers may not have.
    own_code = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own_code))
    guard_compilation()


class _Lock:
    """Takes the place of torch's FileBaton: a file whose mere existence locks, so that one of a killed process lasts.

    The process that gets the lock builds, which is soon done where another process has built just before.
    """

    def __init__(self, path: str, *_: Any, **__: Any) -> None:
        self._lock = FileLock(f"{path}.held")

    def try_acquire(self) -> bool:
        """Wait for the lock; always true."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let others build."""
        self._lock.release()


@functools.cache
def guard_compilation() -> None:
    """Let torch, and so DeepSpeed, compile after a killed build, and only in folders that others cannot write to."""
    from torch.utils import cpp_extension

    # torch 2.9 to 2.11 (pyproject.toml allows them; machines of clusters have them) would wait forever, silently.
    if hasattr(cpp_extension, "FileBaton"):
        cpp_extension.FileBaton = _Lock
    make_folder = cpp_extension._get_build_directory

    def checked(name: str, verbose: bool) -> str:
        variable = "TORCH_EXTENSIONS_DIR"
        if variable in os.environ:
            check_code_folder(Path(os.environ[variable]), variable)
        folder = make_folder(name, verbose)
        check_code_folder(Path(folder), variable)
        return folder

    cpp_extension._get_build_directory = checked


def threads_per_rank() -> int:
    """Return a rank's share of the machine's cores, or of those that its container may use (Kubernetes).

    It is at most the number of cores that the rank is bound to (taskset, srun, cpusets).
    """
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    allowed = joblib.cpu_count()  # knows the quotas of cgroups
    # A quota is shared by all ranks of the container. A binding is usually a rank's own, and is not divided again.
    if allowed < bound:
        cores = min(cores, allowed)
    return max(1, min(bound, cores // ranks_per_node()))


def tune_cpu() -> None:
    """Share the cores among the ranks of this machine, and keep freed memory. ``OMP_NUM_THREADS`` takes precedence."""
    # torch gives every rank all cores, so that ranks would compete for them.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_per_rank())
    # By default glibc returns every large activation to the system when it is freed, and requests it again in the next
    # layer, page by page. That can cost more than the computation.
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
