"""Lock of a run folder: two runs that write checkpoints and records into it would corrupt both."""

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from dist_prune.errors import UserError


def lock_run_folder(folder: str | Path) -> BinaryIO | None:
    """Lock ``folder`` against other processes of this machine, for as long as the returned file is open.

    Returns None where there can be no lock; raises UserError if another process, which the message names, holds it.
    """
    # The lock lies among the machine's temporary files, where it ends with this process, however that ends. In the run
    # folder, a network file system could keep the lock of a lost node and so prevent the run from being resumed.
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"dist_prune-{os.getuid()}-{key}.lock"
    try:
        # O_NOFOLLOW: anyone may place a link in a temporary folder, and the file is truncated below.
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)  # noqa: SIM115
    except OSError:
        return None
    try:
        # Not flock: data workers would inherit that lock and keep it for seconds after this process has ended.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(b"%d" % os.getpid())
    except (BlockingIOError, PermissionError) as error:
        holder = file.read().decode() or "(number unknown)"
        file.close()
        raise UserError(
            f"process {holder} of this machine is training in {folder}: wait until it has ended, or end it, then try "
            "again"
        ) from error
    except OSError:
        # The file system has no locks, or no room for a process number: the run matters more than the lock.
        pass
    return file
