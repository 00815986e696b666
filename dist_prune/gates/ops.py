"""Operations on feature maps that gates add to every block, with few passes over memory.

Their results and gradients are those of plain expressions, which cost several passes more, most of them in autograd's
backward. Under torch.compile the plain expressions are used: the compiler fuses their passes itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dist_prune.gates.cpu_kernels.build import kernels_for

_ROW = 512  # elements of a broadcast; far fewer (few channels) are slow


class _FanOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = pixel_mean(x)
        # Most blocks use one of the three results only: zeros for the others would be full maps.
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return x.view_as(x), x.view_as(x), pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, first: Tensor | None, second: Tensor | None, pooled: Tensor | None) -> Tensor | None:
        batch, channels, height, width = ctx.shape
        maps = [m for m in (first, second) if m is not None]
        if pooled is None:
            return sum(maps[1:], start=maps[0]) if maps else None
        share = (pooled / (height * width)).contiguous()
        if not maps:
            return share.to(ctx.dtype).view(batch, channels, 1, 1).expand(ctx.shape)
        total = maps[0] + maps[1] if len(maps) == 2 else maps[0].clone()
        share = share.to(total.dtype)
        if not total.is_contiguous(memory_format=torch.channels_last):
            return total.add_(share.view(batch, channels, 1, 1))
        # A broadcast over few channels runs slowly; over several pixels at a time it does not.
        pixels = _repeats(height * width, _ROW // channels)
        _flat(total).view(batch, -1, pixels * channels).add_(share.repeat(1, pixels).unsqueeze(1))
        return total


def pixel_mean(x: Tensor) -> Tensor:
    """Return the mean over pixels, (B, C, H, W) -> (B, C), in fp32 or wider; without gradient."""
    x = x.detach()
    if torch.compiler.is_compiling():
        return _plain_mean(x)
    kernels = kernels_for(x)
    return kernels.pixel_mean(x) if kernels else _mean(x)


def _plain_mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _mean(x: Tensor) -> Tensor:
    # A matrix product adds up in fp32 without first writing an fp32 copy of the map, as mean() would. Shares
    # of a power of two keep the sums within fp16, and their scaling rounds nothing.
    batch, channels, height, width = x.shape
    pixels = height * width
    scale = 2.0 ** (pixels.bit_length() - 1)
    shares = x.new_full((1, 1, pixels), 1 / scale).expand(batch, -1, -1)
    sums = torch.bmm(shares, _flat(x).view(batch, pixels, channels)).squeeze(1)
    return sums.to(torch.promote_types(x.dtype, torch.float32)) * (scale / pixels)


def _repeats(pixels: int, wanted: int) -> int:
    """Return the largest divisor of ``pixels`` up to ``wanted``, at least 1."""
    return next((n for n in range(min(wanted, pixels), 1, -1) if pixels % n == 0), 1)


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, gate: Tensor, branch: Tensor, relu: bool) -> Tensor:
        # Reading the gates is free on CPUs; on GPUs the program would wait for the device.
        ctx.all_open = not gate.is_cuda and gate.min().item() == 1
        out = torch.addcmul(shortcut, _factor(gate, branch), branch)
        out = out.relu_() if relu else out
        ctx.relu = relu
        ctx.save_for_backward(gate, branch, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gate, branch, out = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        # A matrix product per sample multiplies and sums in one pass.
        gate_grad = torch.bmm(_flat(grad).unsqueeze(1), _flat(branch).unsqueeze(2)).view(-1, 1)
        branch_grad = grad if ctx.all_open else grad * _factor(gate, branch)
        return grad, gate_grad.to(gate.dtype), branch_grad, None


class _ScaleChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, gate: Tensor, may_alias: bool) -> Tensor:
        ctx.all_open = not gate.is_cuda and gate.min().item() == 1
        ctx.save_for_backward(maps, gate)
        if ctx.all_open and may_alias:
            return maps.view_as(maps)
        if kernels := kernels_for(maps):
            return kernels.scale_forward(maps, gate.float().contiguous())
        return maps * _factor(gate, maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        maps, gate = ctx.saved_tensors
        # A frozen gate.
        if not ctx.needs_input_grad[1]:
            return scale_channels(grad, gate), None, None
        if kernels := kernels_for(grad, maps):
            grads = kernels.scale_backward(grad, maps, gate.float().contiguous(), ctx.all_open)
            return grads[0], grads[1].to(gate.dtype), None
        wide = torch.promote_types(maps.dtype, torch.float32)
        gate_grad = (grad * maps).sum((2, 3), dtype=wide).to(gate.dtype)
        map_grad = grad if ctx.all_open else grad * _factor(gate, grad)
        return map_grad, gate_grad, None


def _factor(gate: Tensor, maps: Tensor) -> Tensor:
    """Return decisions (B, C) or (B, 1) as a factor of maps (B, C, H, W)."""
    return gate.to(maps.dtype)[:, :, None, None]


def _flat(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H * W * C): a view for channels_last maps, in the same order for all others."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


def fan_out(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a map for branch and shortcut, and its mean (B, C) in fp32 or wider: ``(x, x, x.mean((2, 3)))``.

    Backward sums all three gradients, in as few passes as possible.
    """
    if torch.compiler.is_compiling():
        return x, x, _plain_mean(x)
    kernels = kernels_for(x)
    return kernels.fan_out(x) if kernels else _FanOut.apply(x)


def add_gated(shortcut: Tensor, gate: Tensor, branch: Tensor, relu: bool = False) -> Tensor:
    """Return ``shortcut + gate[:, :, None, None] * branch``, or the ReLU of it.

    Args:
        shortcut: (B, C, H, W).
        gate: (B, 1).
        branch: shape and dtype of ``shortcut``.
        relu: apply a ReLU to the sum.
    """
    if torch.compiler.is_compiling():
        out = shortcut + _factor(gate, branch) * branch
        return out.relu() if relu else out
    kernels = kernels_for(shortcut, branch)
    return kernels.add_gated(shortcut, gate, branch, relu) if kernels else _AddGated.apply(shortcut, gate, branch, relu)


def scale_channels(maps: Tensor, gate: Tensor, may_alias: bool = True) -> Tensor:
    """Return ``gate[:, :, None, None] * maps``.

    Args:
        maps: (B, C, H, W).
        gate: (B, C).
        may_alias: the result may be ``maps`` itself when all gates are open. False if it is changed in place.
    """
    if torch.compiler.is_compiling():
        return maps * _factor(gate, maps)
    return _ScaleChannels.apply(maps, gate, may_alias)
