"""Noise that is a function of (seed, step, gate, sample, unit) alone: equal on one rank and on many.

Stochastic heads decide by it; random drop closes units by it in a few samples, to learn what the network would lose.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class NoiseKey:
    """Key of the gate noise; the same for every world size.

    Attributes:
        seed: of the run.
        step: number of the optimizer step.
        first_sample: number, within the global batch, of the first sample of this rank's micro-batch.
        temperature: of Gumbel-softmax.
    """

    seed: int
    step: int | Tensor
    first_sample: int | Tensor
    temperature: float = 1.0

    def of_stream(self, stream: int) -> int:
        """Return the key of one stream of draws, 64 bits, signed."""
        return _key(self.seed, int(self.step), stream)


def noise(noise_key: NoiseKey, stream: int, like: Tensor, logistic: bool = False) -> Tensor:
    """Return noise (B, units), uniform in [0, 1] or standard logistic; row i belongs to sample ``first_sample`` + i.

    Args:
        noise_key: of this forward pass.
        stream: draws of different streams are independent of each other.
        like: has the shape, device and dtype of the noise.
        logistic: logistic instead of uniform.
    """
    # A custom operation is opaque to the compiler; elsewhere it would cost more than it computes.
    draw = _compiled_draw if torch.compiler.is_compiling() else _draw
    step, first = torch.as_tensor(noise_key.step), torch.as_tensor(noise_key.first_sample)
    return draw(step, first, noise_key.seed, stream, like.detach(), logistic)


def _draw(step: Tensor, first_sample: Tensor, seed: int, stream: int, like: Tensor, logistic: bool) -> Tensor:
    batch, units = like.shape
    # Both are on the CPU, so reading them does not wait for a device.
    first = int(first_sample)
    samples = torch.arange(first, first + batch, device=like.device).unsqueeze(1)
    # Each number is computed from its own counter, so it does not matter which rank computes it.
    counters = samples * units + torch.arange(units, device=like.device)
    bits = _scramble(counters * _signed(_GAMMA) + _key(seed, int(step), stream))
    # 53 bits fill a double; the half keeps 0 and 1 out, whose logits are infinite.
    uniform = (((bits >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2.0**53
    return (uniform.log() - (-uniform).log1p() if logistic else uniform).to(like.dtype)


@torch.library.custom_op("dist_prune::noise", mutates_args=())
def _compiled_draw(step: Tensor, first_sample: Tensor, seed: int, stream: int, like: Tensor, logistic: bool) -> Tensor:
    return _draw(step, first_sample, seed, stream, like, logistic)


@_compiled_draw.register_fake
def _(step: Tensor, first_sample: Tensor, seed: int, stream: int, like: Tensor, logistic: bool) -> Tensor:
    return torch.empty_like(like)


def _key(*words: int) -> int:
    key = 0
    for word in words:
        key = _scramble_int((key + word + 1) * _GAMMA & _WORD)
    return _signed(key)


def _scramble(x: Tensor) -> Tensor:
    """Return the finalizer of SplitMix64 (Steele et al., OOPSLA 2014) on int64, whose products wrap around."""
    # Masks turn the arithmetic right shift of int64 into the logical one of uint64.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(_FIRST)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(_SECOND)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _scramble_int(x: int) -> int:
    x = (x ^ (x >> 30)) * _FIRST & _WORD
    x = (x ^ (x >> 27)) * _SECOND & _WORD
    return x ^ (x >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


class _RandomDrop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decisions: Tensor, dropped: Tensor) -> Tensor:
        ctx.save_for_backward(dropped)
        return decisions.masked_fill(dropped, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Where a gate is open the loss says little about it: the norm in the branch learns the scale at which the
        # derivative with respect to the gate vanishes. Where it is closed, the derivative is that of bringing the
        # unit back, which is its importance.
        (dropped,) = ctx.saved_tensors
        return grad * dropped, None


def drop_stream(gate: int) -> int:
    """Return the noise stream of a gate's drops; heads use the streams from 0 up."""
    return -1 - gate


def random_drop(decisions: Tensor, rate: float, noise_key: NoiseKey, gate: int) -> Tensor:
    """Close units at random in some samples; the gradient passes there only.

    In each of these samples the share of dropped units is itself drawn from [0, 1], so a unit learns what it adds when
    many others of its gate are open, when few are, and when none is: among all others, one channel of many is hardly
    missed, however useful its layer. (The mean over all such coalitions is the Shapley value, by Owen's multilinear
    extension, Management Science 18, 1972; here those with few units count more.)

    Args:
        decisions: zeros and ones (B, units).
        rate: share of the samples in which units are dropped.
        noise_key: of this forward pass.
        gate: number of the gate in its network.

    Returns:
        The decisions (B, units), without the dropped units.
    """
    like = decisions.new_empty(len(decisions), 2 + decisions.shape[1], dtype=torch.float32)
    draws = noise(noise_key, drop_stream(gate), like)
    # Two draws a sample (is it chosen, and how many units lose), then one a unit.
    chosen, share, own = draws[:, :1], draws[:, 1:2], draws[:, 2:]
    return _RandomDrop.apply(decisions, (chosen < rate) & (own < share))
