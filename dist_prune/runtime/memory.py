"""Lack of memory in one line that says which setting needs less."""

from __future__ import annotations

import torch

_SMALLER = (
    "lower train_micro_batch_size_per_gpu in the DeepSpeed config (more accumulation steps make up for it) or "
    "image_size"
)


def out_of_memory(error: Exception) -> str | None:
    """What to do about an error that stands for a lack of memory; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return f"is out of GPU memory: {_SMALLER}, or use a higher ZeRO stage"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    ):
        return f"is out of memory: {_SMALLER}, or workers, or start fewer ranks on this machine"
    return None
