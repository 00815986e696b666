"""Files that are never half-written and have the usual permissions, and strict JSON."""

import ctypes
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from dist_prune.errors import UserError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, sync it, then rename it to `path`.

    Raises OSError if that fails, UserError if `path` is no regular file: then it stays as it is, and the temporary file
    is removed.
    """
    beside = temporary_beside(path)
    # Not tempfile.mkstemp: its files are private to the user, while a run folder may be shared with a group.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """Return a hidden name beside ``path`` that nobody can guess: in a shared folder, links may be planted."""
    return path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Remove what ``write_atomic`` and the like left in ``folder`` when their process was killed.

    of: only what was to become this name; others may be writing beside it.
    """
    # Only the names of ``temporary_beside``: all others are the user's.
    name = ".+" if of is None else re.escape(of.lstrip("."))
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(rf"\.{name}\.[0-9a-f]{{16}}\.tmp", path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def replace(beside: Path, target: Path) -> None:
    """Rename a file or folder to ``target`` in one step; an older one of the same kind is replaced.

    The older folder may be left under the name ``beside``: the caller removes it. Raises UserError if ``target`` is
    something else (a device, a pipe, a folder in place of a file), OSError if it cannot be renamed.
    """
    if target.exists() and not (target.is_dir() if beside.is_dir() else target.is_file()):
        kind = "folder" if beside.is_dir() else "regular file"
        raise UserError(f"{target} is no {kind}, so nothing replaces it: name another one")
    # No system renames over a folder that is not empty.
    if beside.is_dir() and target.is_dir() and not target.is_symlink():
        _exchange(beside, target)
    else:
        os.replace(beside, target)


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders; a process that is killed leaves both, each under one of the names."""
    names = os.fsencode(one), os.fsencode(other)
    system = getattr(ctypes.CDLL(None), "renameat2", None)
    if system and system(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    # Some network file systems cannot. A process that is killed in between leaves the old one under the third name.
    aside = temporary_beside(other)
    os.replace(other, aside)
    os.replace(one, other)
    shutil.rmtree(aside, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions; raise OSError or SafetensorError if that fails."""
    import safetensors.torch  # late: reading a run folder needs no torch

    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, dict(metadata) if metadata else None)
    # safetensors creates files that are private to the user.
    path.chmod(mode)


def write_at_end(path: Path, data: bytes) -> None:
    """Append `data` to a file, or raise OSError and leave the file as it was; a link is not followed."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            # A disk that becomes full accepts a part of the data.
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def read_regular(path: Path) -> bytes:
    """Return the content of a file that others may have made; OSError or ValueError if it is none.

    Reading a device or a pipe might have no end.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    return path.read_bytes()


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON: NaN and infinities become null, tensors and arrays become lists or numbers."""
    # Tensors and arrays know themselves how to become plain: their libraries are not imported here.
    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=lambda found: found.tolist())
    return json.dumps(plain, indent=indent, allow_nan=False, ensure_ascii=False)
