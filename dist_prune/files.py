"""Files that are never half-written and have the usual permissions, and strict JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, sync it, then rename it to `path`.

    Raises OSError if that fails: then `path` keeps its old content, and the temporary file is removed.
    """
    # Not tempfile.mkstemp: its files are private to the user, while a run folder may be shared with a group.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def save_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the usual permissions; raise OSError or SafetensorError if that fails."""
    import safetensors.torch  # late: reading a run folder needs no torch

    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path, dict(metadata) if metadata else None)
    # safetensors creates files that are private to the user.
    path.chmod(mode)


def write_at_end(path: Path, data: bytes) -> None:
    """Append `data` to a file, or raise OSError and leave the file as it was."""
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            # A disk that becomes full accepts a part of the data.
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(before)
            raise


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON: NaN and infinities become null, tensors and arrays become lists or numbers."""
    # Tensors and arrays know themselves how to become plain: their libraries are not imported here.
    plain = to_jsonable_python(value, inf_nan_mode="null", fallback=lambda found: found.tolist())
    return json.dumps(plain, indent=indent, allow_nan=False, ensure_ascii=False)
