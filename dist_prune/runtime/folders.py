"""Folders and programs that a run needs beside its run folder: home, temporary files, compiled code, a compiler."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from dist_prune.errors import UserError
from dist_prune.runtime.launch import forget_launcher, local_rank

_LONGEST_TEMPORARY = 75  # bytes; multiprocessing adds 32 for its sockets, and a socket's path has at most 107


def check_folders() -> None:
    """Raise UserError if home or the folder for temporary files cannot be used; before the imports that need them."""
    problem = _problem_of_folders()
    if problem:
        # The ranks have not met yet: the first rank of each machine that has the problem reports it.
        if local_rank() == 0:
            forget_launcher()
        raise UserError(problem)


def _problem_of_folders() -> str | None:
    try:
        Path.home()
    except RuntimeError:  # a container's user without a name
        return "your home folder is unknown: set HOME to a folder that you may write to"
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return "no folder for temporary files can be written to: set TMPDIR to one, or make room there"
    if len(os.fsencode(folder)) > _LONGEST_TEMPORARY:
        return (
            f"the path of the folder for temporary files, {folder}, is too long for the sockets of data workers: "
            f"set TMPDIR to a path of at most {_LONGEST_TEMPORARY} bytes"
        )
    return None


def check_code_folder(folder: Path, variable: str) -> None:
    """Raise UserError unless code in ``folder`` can be executed and only this user or root can have written it."""
    fix = f"set {variable} to a folder of your own that others cannot write to"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state, flags = folder.stat(), os.statvfs(folder).f_flag
    except OSError as error:
        raise UserError(f"cannot use {folder} for compiled code: {error.strerror}; {fix}") from error
    # Many systems give each user a group of the same number, and let it write to all that the user creates.
    others = stat.S_IWOTH | (0 if state.st_gid == state.st_uid else stat.S_IWGRP)
    problems = {
        "it belongs to another user": state.st_uid not in (os.getuid(), 0),
        "other users can write to it": bool(state.st_mode & others),
        "you cannot write to it": not os.access(folder, os.W_OK | os.X_OK),
        "its file system is mounted noexec": bool(flags & os.ST_NOEXEC),
    }
    for problem, found in problems.items():
        if found:
            raise UserError(f"cannot use {folder} for compiled code: {problem}; {fix}")


def check_compiler() -> None:
    """Raise UserError if there is no C++ compiler."""
    compiler = os.environ.get("CXX", "c++")
    if not compiler.split() or shutil.which(compiler.split()[0]) is None:
        raise UserError(f"there is no C++ compiler '{compiler}': install one, or set CXX")
