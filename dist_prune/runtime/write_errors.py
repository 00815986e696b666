"""A disk that is full, or that nothing can be written to, in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from dist_prune.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class CannotWrite(RunError):
    """The run folder is full, or cannot be written to."""

    @classmethod
    def because_of(cls, error: Exception, folder: Path) -> CannotWrite:
        """From an OSError, or a SafetensorError, which only tells the number of one in its text."""
        number = _number(error)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        mend = f"make room ({_free(folder)} free there)" if number in _FULL else "mend that"
        return cls(
            f"cannot write to the run folder {folder}: {reason}; {mend}, then go on with --resume: "
            "the checkpoints that are there are whole"
        )


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"os error (\d+)", str(error))
    return int(told[1]) if told else None


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    except OSError:
        return "unknown room"
