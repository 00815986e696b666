"""Activation checkpointing of a network's blocks: memory for time, with the same losses, gradients and statistics."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dist_prune.gates.recompute import without_norm_updates
from dist_prune.gates.wrappers import Gated
from dist_prune.pruning.residual import residual_form


def checkpoint_blocks(model: nn.Module) -> int:
    """Keep only the inputs of residual blocks and gated modules in training; backward recomputes the rest.

    In place; names and outputs stay. Copies for evaluation or slicing must be made before.

    Returns:
        The number of blocks, 0 where the network has none.
    """
    if isinstance(model, Gated) or residual_form(model) is not None:
        _checkpoint(model)
        # What lies within is recomputed with it; checkpointing it again would compute it a third time.
        return 1
    return sum(checkpoint_blocks(child) for child in model.children())


def _checkpoint(block: nn.Module) -> None:
    plain_forward = block.forward

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return contextlib.nullcontext(), without_norm_updates(block)

    def forward(*inputs: Any, **options: Any) -> Any:
        # Without backward there is nothing to recompute, and nothing to save memory for.
        if not (block.training and torch.is_grad_enabled()):
            return plain_forward(*inputs, **options)
        return checkpoint(plain_forward, *inputs, use_reentrant=False, context_fn=contexts, **options)

    block.forward = forward
