"""Failures that one line can explain: lost ranks, lack of memory, a run folder that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from dist_prune import distributed
from dist_prune.errors import LocalRankError, RunError, UserError
from dist_prune.runtime.peers import Peer, describe_lost_rank, report_first_on_node

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALLER = (
    "lower train_micro_batch_size_per_gpu in the DeepSpeed config (more accumulation steps make up for it) or "
    "image_size"
)


@contextlib.contextmanager
def translate_rank_failures(peers: list[Peer], timeout: float) -> Iterator[None]:
    """Turn an error that this rank meets alone, a lost rank or a lack of memory, into a LocalRankError.

    Errors that all ranks raise together pass unchanged, and so do unexpected ones.

    Args:
        peers: all ranks of the run.
        timeout: seconds that ranks wait for one another.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        lost = describe_lost_rank(error, peers, timeout)
        # Tell the other ranks in any case: they will notice the loss of this rank and must not report it as a cause.
        first = distributed.announce_exit()
        if lost is not None:
            # Rank 0 keeps the store that announce_exit reads. If rank 0 is the lost one, there is no answer.
            first = report_first_on_node(peers[0]) if first is None else first
            raise LocalRankError(f"{lost}; continue with --resume", reported=not first) from error
        if reason := out_of_memory(error):
            raise LocalRankError(f"rank {distributed.rank()} {reason}") from error
        raise


def out_of_memory(error: Exception) -> str | None:
    """Return advice if ``error`` stands for a lack of memory; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"is out of GPU memory: {_SMALLER}, or use a higher ZeRO stage"
    # torch reports host memory by a plain RuntimeError.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return f"is out of memory: {_SMALLER}, or workers, or start fewer ranks on this machine"
    return None


class CannotWrite(RunError):
    """The run folder is full, or cannot be written to."""

    @classmethod
    def because_of(cls, error: Exception, folder: Path) -> CannotWrite:
        """Convert an OSError, or a SafetensorError, which carries the error number only in its text."""
        number = _error_number(error)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        fix = f"make room ({_free_space(folder)} free there)" if number in _FULL else "fix that"
        return cls(
            f"cannot write to the run folder {folder}: {reason}; {fix}, then continue with --resume: "
            "the existing checkpoints are intact"
        )


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    except OSError:
        return "unknown space"
