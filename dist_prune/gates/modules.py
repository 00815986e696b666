"""Gating modules: small networks that decide, for each sample, which units of a site are open."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.gates.cpu_kernels.fused_gating import fused_gating
from dist_prune.gates.exploration import explored
from dist_prune.gates.gate import Gate
from dist_prune.gates.heads import HEADS
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.ops import fan_out, pixel_mean
from dist_prune.gates.recompute import (
    in_recomputation,
    norms_by_running_statistics,
    with_means_gradient,
    without_norm_updates,
)

_AS_IT_IS = contextlib.nullcontext()


@contextlib.contextmanager
def _without_autocast(device_type: str) -> Iterator[None]:
    """What ``torch.autocast(device_type, enabled=False)`` does, at a tenth of its cost (it is paid per gate)."""
    was_enabled = torch.is_autocast_enabled(device_type)
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, was_enabled)


class GatingModule(Gate):
    """The gating modules of arXiv 2302.10798, Table 1: average pool (or flatten), K dense layers, binary head.

    Each dense layer but the last is followed by batch norm and ReLU. ``in_features``: channels of the input
    (flattened: channels times pixels); ``units``: outputs, one for each channel of a channel site (the table
    prints 1 there, where equation 9 needs one for each channel). ``open_bias`` is the initial bias of the
    last dense layer: at 1, with small weights behind it, the gate starts open for nearly every sample and
    still within reach of equation 5's gradient, |x| <= 1; None keeps torch's default. ``number``: of
    the gate in its network.

    A unit opens where its logit exceeds ``threshold``, and its gradient passes within ``reach`` of it. What the
    last dense layer reads is scaled by ``sensitivity``, and the gate's gradient flows into the map that it reads
    if ``feedback`` is set. For a share of ``exploration`` of the samples, units are closed in training whatever the
    gate decides (``explored``). These are 0, 1, 1, true and 0, as in the paper, unless a ``Budget`` changes
    them. ``moment``: of the next forward pass, where the caller sets it. In training on a batch of one sample, batch
    norms use their running statistics: one sample has no variance.
    """

    threshold: Tensor
    reach: Tensor
    sensitivity: Tensor

    def __init__(
        self,
        in_features: int,
        units: int = 1,
        *,
        hidden: int = 16,
        dense_layers: int = 2,
        head: str = "ste",
        open_bias: float | None = 1.0,
        flatten: bool = False,
        number: int = 0,
    ) -> None:
        super().__init__()
        self.units = units
        self.flatten = flatten
        self.feedback = True
        self.exploration = 0.0
        self.moment: NoiseKey | None = None
        self._latest_moment: NoiseKey | None = None
        self._leaf: Tensor | None = None  # decisions recorded without a graph
        self._passes = torch.zeros((), dtype=torch.int64)  # a number would be compiled into the graph
        self._frozen: Tensor | None = None
        self.open_bias = open_bias
        widths = [in_features, *[hidden] * (dense_layers - 1)]
        body: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            body += [nn.Linear(narrow, wide), nn.BatchNorm1d(wide), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        self.last = nn.Linear(widths[-1], units)
        self.head = HEADS[head](units, number)
        self.register_buffer("threshold", torch.zeros(units))
        self.register_buffer("reach", torch.ones(()))
        self.register_buffer("sensitivity", torch.ones(()))
        if open_bias is not None:
            nn.init.constant_(self.last.bias, open_bias)
            nn.init.normal_(self.last.weight, std=0.04 / math.sqrt(widths[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the gate reads -> the same twice, and decisions (B, units) in the dtype of the gate's weights."""
        if self._frozen is not None:
            decisions = self._frozen.expand(x.shape[0], -1)
            return x, x, self.keep(decisions, decisions)
        recomputed = in_recomputation()
        moment = self._take_moment(len(x), recomputed) if self.training else None
        # Thousands of pixels are averaged in fp32, and a decision is not worth a bf16 rounding.
        with _without_autocast(x.device.type):
            first, second, features = self._features(x)
            features = features.to(self.last.weight.dtype)
            with self._norm_mode(len(x), recomputed):
                obeyed, own, logits = self._decided(features, moment)
        return first, second, self._recorded(obeyed, own, logits, recomputed)

    def _norm_mode(self, batch: int, recomputed: bool) -> contextlib.AbstractContextManager[None]:
        if self.training and batch == 1:
            return norms_by_running_statistics(self.body)
        return without_norm_updates(self.body) if recomputed else _AS_IT_IS

    def _recorded(self, obeyed: Tensor, own: Tensor, logits: Tensor, recomputed: bool) -> Tensor:
        """Record the gate's own decisions, and return those to be obeyed."""
        if recomputed:
            return obeyed if self._leaf is None else with_means_gradient(obeyed, own, self._leaf)
        self._leaf = None
        # Without a graph in training, a reentrant checkpoint may follow, whose recomputation needs the gradient of
        # the gate means (``with_means_gradient``).
        if self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._leaf = own = own.detach().clone().requires_grad_()
        self.keep(own, logits)
        return obeyed

    def freeze(self, opened: Tensor | None) -> None:
        """From now on decide so for every sample: opened (units,), bool; None: ask the gating module again."""
        self._frozen = None if opened is None else opened.to(self.last.weight)
        self.constant = int(opened[0]) if opened is not None and bool((opened == opened[0]).all()) else None

    @property
    def frozen(self) -> bool:
        """Whether it decides without looking at what it reads: see ``freeze``."""
        return self._frozen is not None

    def _take_moment(self, batch: int, recomputed: bool) -> NoiseKey | None:
        """The moment that the caller has set for this forward pass; else, if there is noise, one that counts passes.

        In a recomputation: that of the latest forward pass.
        """
        if recomputed:
            return self._latest_moment
        moment, self.moment = self.moment, None
        if moment is None and (self.head.draws or self.exploration):
            self._passes = self._passes + 1
            moment = NoiseKey(0, self._passes, distributed.rank() * batch)
        self._latest_moment = moment
        return moment

    def _decided(self, features: Tensor, moment: NoiseKey | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, units) each: decisions to be obeyed, the gate's own, and their logits."""
        buffers = self.threshold, self.reach, self.sensitivity
        # In place of the layers below where it can be: separate operations cost ten times as much on CPUs.
        fused = fused_gating(features, self.body, self.last, self.head, buffers, self.exploration, moment)
        if fused is not None:
            return fused
        logits = self.last(self.body(features) * self.sensitivity)
        decisions = obeyed = self.head((logits - self.threshold) / self.reach, moment)
        if moment is not None and self.exploration:
            obeyed = explored(decisions, self.exploration, moment, self.head.number)
        return obeyed, decisions, logits

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.flatten or x.dim() == 3:
            read = x if self.feedback else x.detach()
            wide = torch.promote_types(x.dtype, torch.float32)
            return x, x, read.flatten(1) if self.flatten else read.mean(1, dtype=wide)
        return fan_out(x) if self.feedback else (x, x, pixel_mean(x))
