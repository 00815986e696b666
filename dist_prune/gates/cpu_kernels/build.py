"""Compile the C++ kernels of this folder, on request and once for each kind of processor.

Without them everything works by torch's own operations, only slower (benchmarks/step_time.py).
"""

import hashlib
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_prune.errors import DistPruneWarning, UserError, first_line
from dist_prune.runtime.folders import check_compiler

_LONGEST_REASON = 300
_kernels: Any = None


def compile_kernels() -> bool:
    """Compile the kernels, or load those that an earlier call has compiled; about half a minute the first time.

    Needs a C++ compiler and ninja.

    Returns:
        True if the kernels are loaded; otherwise warns in one line.
    """
    global _kernels
    if _kernels is None:
        # It imports setuptools, which programs without kernels do not need.
        from torch.utils.cpp_extension import load

        from dist_prune.runtime.environment import guard_compilation

        guard_compilation()
        source = Path(__file__).with_name("kernels.cpp")
        flags = ["-O3", "-march=native", "-fopenmp"]
        try:
            check_compiler()
            _kernels = load(f"dist_prune_kernels_{_build_of(source)}", [str(source)], extra_cflags=flags)
        except (RuntimeError, OSError, ImportError, UserError) as error:
            # Kernels only save time, so training continues without them. ninja's message is the compiler's command.
            text = f"training is slower without CPU kernels: {first_line(error)[:_LONGEST_REASON]}"
            warnings.warn(text, DistPruneWarning, stacklevel=2)
    return _kernels is not None


def kernels_for(*inputs: Tensor) -> Any:
    """Return the compiled kernels if they support these maps (B, C, H, W) or features (B, F), else None."""
    if torch.compiler.is_compiling() or _kernels is None:
        return None
    dtype = inputs[0].dtype
    fits = dtype in (torch.float32, torch.bfloat16) and all(
        x.device.type == "cpu"
        and x.dtype == dtype
        and (x.dim() == 2 or x.is_contiguous(memory_format=torch.channels_last))
        for x in inputs
    )
    return _kernels if fits else None


def _build_of(source: Path) -> str:
    """Return a key of the build."""
    # Nodes of different processors may share a home folder, but not native code.
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    # Path: two copies of the source under one name would be compiled anew at each other's start.
    # Text: where a change does not compile, the build before it must not be loaded in its place.
    text = "".join(path.read_text() for path in sorted(source.parent.glob("*.[ch]*")))
    build = f"{platform.machine()} {flags} {torch.__version__} {source.resolve()} {text}"
    return hashlib.sha256(build.encode()).hexdigest()[:12]
