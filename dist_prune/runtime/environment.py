"""Environment variables that DeepSpeed reads at its import and when it compiles its operations."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch

from dist_prune.runtime.compiling import outlast_killed_builds


def prepare_environment() -> None:
    """Set the variables that DeepSpeed reads, unless the user has; call it before its import."""
    # Operations are compiled on first use by the ninja of this environment. An ssh session, where the environment is
    # not active, would not find it, or would find another version, which compiles everything again.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions()))
    # Otherwise DeepSpeed searches for accelerators and prints what it finds.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    outlast_killed_builds()


def _extensions() -> Path:
    """Return the build folder of this environment: two environments that share one would rebuild at each start."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = hashlib.sha256(f"{sys.prefix} {torch.__version__}".encode()).hexdigest()[:12]
    return cache / "torch_extensions" / environment
