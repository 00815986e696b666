"""Process settings for training on CPUs: memory that is kept, and threads that are shared among ranks."""

from __future__ import annotations

import contextlib
import ctypes
import os

import joblib
import torch

from dist_prune.runtime.launch import ranks_per_node

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


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
