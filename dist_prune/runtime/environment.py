"""What DeepSpeed finds in the environment when it is imported, and when it compiles its operations."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch

from dist_prune.runtime.compiling import outlast_killed_builds


def prepare_environment() -> None:
    """Set what DeepSpeed reads, unless the user has. To be called before its import."""
    # Operations are compiled on first use, by a ninja that lies beside this python: an ssh session does not find it,
    # or finds another one, which compiles everything anew.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions()))
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    outlast_killed_builds()


def _extensions() -> Path:
    """A folder for what this environment compiles: two that share one would compile anew at each start."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = hashlib.sha256(f"{sys.prefix} {torch.__version__}".encode()).hexdigest()[:12]
    return cache / "torch_extensions" / environment
