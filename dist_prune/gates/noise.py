"""Noise that is a function of (seed, step, gate, sample, unit) alone: equal on one rank and on many."""

from __future__ import annotations

from dataclasses import dataclass

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


def logistic_noise(noise_key: NoiseKey, stream: int, like: Tensor) -> Tensor:
    """Return standard logistic noise (B, units); row i belongs to sample ``first_sample`` + i.

    Args:
        noise_key: of this forward pass.
        stream: draws of different streams are independent of each other.
        like: has the shape, device and dtype of the noise.
    """
    return _noise(noise_key, stream, like, True)


def uniform_noise(noise_key: NoiseKey, stream: int, like: Tensor) -> Tensor:
    """Return noise that is uniform in [0, 1], otherwise as ``logistic_noise``."""
    return _noise(noise_key, stream, like, False)


def _noise(noise_key: NoiseKey, stream: int, like: Tensor, logistic: bool) -> Tensor:
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
