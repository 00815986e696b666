"""One run at a time in a folder: two that write checkpoints and records into it would spoil both."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from dist_prune.errors import UserError


def lock_run_folder(folder: str | Path) -> BinaryIO | None:
    """Keep other processes of this machine from training in ``folder`` while the returned file is open.

    Raises UserError, which names the process, if one does already. The lock lies among the machine's temporary files,
    not in ``folder``: there it ends with this process, however that ends, where a network file system may keep the lock
    of a lost node, and thereby the run from being resumed. So what other machines do goes unnoticed. None where there
    can be no lock.
    """
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"dist_prune-{os.getuid()}-{key}.lock"
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)  # noqa: SIM115
    except OSError:
        return None
    try:
        # Not flock, which the workers that read data would inherit, and keep for seconds after this process.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(b"%d" % os.getpid())
    except (BlockingIOError, PermissionError) as error:
        holder = file.read().decode() or "of an unknown number"
        file.close()
        raise UserError(
            f"process {holder} of this machine is training in {folder}: wait until it has ended, or end it, then try "
            "again"
        ) from error
    except OSError:  # no locks here, or no room for a number
        pass
    return file
