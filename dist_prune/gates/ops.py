"""Two operations on feature maps that gates add to every block, written to cost few passes over memory.

Their results and gradients are those of the plain expressions named below (tests hold them against these);
autograd's own backward of the plain expressions costs a third of a ResNet-56 step on CPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_ROW = 512  # elements that a broadcast should run over in one go: far fewer (few channels) are slow


class _PooledBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # A matrix product adds up in fp32 without first writing an fp32 copy of the map, as mean() would.
        batch, channels, height, width = x.shape
        # Shares of a power of two, so that the sums stay within fp16 and the scaling rounds nothing.
        pixels = height * width
        scale = 2.0 ** (pixels.bit_length() - 1)
        shares = x.new_full((1, 1, pixels), 1 / scale).expand(batch, -1, -1)
        sums = torch.bmm(shares, _flat(x).view(batch, pixels, channels)).squeeze(1)
        wide = torch.promote_types(x.dtype, torch.float32)
        return x.view_as(x), sums.to(wide) * (scale / pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, pooled_grad: Tensor) -> Tensor:
        batch, channels, height, width = grad.shape
        share = (pooled_grad / (height * width)).to(grad.dtype)
        if not grad.is_contiguous(memory_format=torch.channels_last):
            return grad + share.view(batch, channels, 1, 1)
        # A broadcast over few channels runs slowly; over several pixels at a time it does not.
        pixels = _repeats(height * width, _ROW // channels)
        rows = _flat(grad).view(batch, -1, pixels * channels) + share.repeat(1, pixels).unsqueeze(1)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _repeats(pixels: int, wanted: int) -> int:
    """The largest divisor of ``pixels`` up to ``wanted``, 1 at least."""
    return next((n for n in range(min(wanted, pixels), 1, -1) if pixels % n == 0), 1)


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        factor = gate.to(branch.dtype).view(-1, 1, 1, 1)
        ctx.save_for_backward(factor, branch)
        ctx.gate_dtype = gate.dtype
        # Looking at the gates is free on CPUs; a GPU would have to be waited for.
        ctx.all_open = not gate.is_cuda and bool((gate == 1).all())
        return torch.addcmul(kept, factor, branch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor, branch = ctx.saved_tensors
        gate_grad = torch.bmm(_flat(grad).unsqueeze(1), _flat(branch).unsqueeze(2)).view(-1, 1)
        return grad, gate_grad.to(ctx.gate_dtype), grad if ctx.all_open else grad * factor


def _flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W * C): a view for channels_last maps, and the same order for all others."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def pooled_beside(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(x, x.mean((2, 3)))``: the map handed through, and its mean (B, C) in fp32 or wider.

    Whoever goes on with the first output has both parts of x's gradient added in one pass over memory.
    """
    return _PooledBeside.apply(x)


def add_gated(kept: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """``kept + gate[:, :, None, None] * branch``; gate (B, 1), kept and branch (B, C, H, W) of one dtype."""
    return _AddGated.apply(kept, gate, branch)
