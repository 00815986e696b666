"""What makes training on CPUs fast: memory that is kept, and threads that are shared out among ranks."""

from __future__ import annotations

import contextlib
import ctypes
import os

import joblib
import torch

from dist_prune.runtime.launch import ranks_per_node

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def threads_of_a_rank() -> int:
    """A rank's share of the machine's cores, or of the time on them that its container may use (Kubernetes).

    No more than it is bound to (taskset, srun, cpusets).
    """
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    allowed = joblib.cpu_count()  # knows the quotas of cgroups
    if allowed < bound:
        cores = min(cores, allowed)
    return max(1, min(bound, cores // ranks_per_node()))


def tune_cpu() -> None:
    """Share the cores among the ranks of this machine and keep freed memory.

    By default glibc gives every large activation back to the system when it is freed and takes it anew in
    the next layer, page by page, which can cost more than the computation. ``OMP_NUM_THREADS`` wins over the sharing.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of_a_rank())
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
