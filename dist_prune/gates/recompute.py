"""Recomputation of forward passes during backward (activation checkpointing).

A recomputed pass has to repeat the first one: the same noise, no second record of decisions, no second update of
running statistics.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def in_recomputation() -> bool:
    """Return whether this forward pass runs inside a backward pass, as every form of recomputation does."""
    # Compiled graphs never recompute through Python, and the compiler cannot trace the question.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@contextlib.contextmanager
def without_norm_updates(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of all batch norms in ``module``; outputs do not change."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Momentum 0 rather than a restored copy: backward refuses saved statistics that were written in place.
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class MeansGradient(torch.autograd.Function):
    """Return ``applied``; backward also gives ``decisions`` the gradient that has reached ``record``.

    Reentrant checkpointing runs the first pass without a graph: the gradient of the gate means then ends at the
    decisions recorded there, a leaf, before the recomputation begins, which passes it on to the gate.
    """

    @staticmethod
    def forward(ctx: Any, applied: Tensor, decisions: Tensor, record: Tensor) -> Tensor:
        """Take decisions (B, units) three times."""
        ctx.record = record
        return applied.view_as(applied)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Return the gradients of applied and own decisions."""
        # Taken once: a second backward pass through the gate must not count the means again.
        grad_of_means, ctx.record.grad = ctx.record.grad, None
        return grad, grad_of_means, None
