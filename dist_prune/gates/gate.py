"""Gates: small networks that decide, for each sample, which units of a site are open."""

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.errors import UserError
from dist_prune.gates.cpu_kernels.fused_gating import fused_gating
from dist_prune.gates.heads import HEADS
from dist_prune.gates.noise import NoiseKey, random_drop
from dist_prune.gates.ops import fan_out, pixel_mean
from dist_prune.gates.recompute import MeansGradient, in_recomputation, without_norm_updates
from dist_prune.models.build import in_eval_mode

_UNCHANGED = contextlib.nullcontext()


class Gate(nn.Module):
    """The gating module of arXiv 2302.10798, Table 1: average pool (or flatten), dense layers, binary head.

    Each dense layer but the last is followed by batch norm and ReLU. The table prints out_dim = 1 for channel sites,
    where equation 9 needs one output for each channel. A gate records the decisions of its latest forward pass.

    Args:
        in_features: channels of the input; of a flattened one, channels times pixels.
        units: number of outputs.
        hidden: width between two dense layers.
        dense_layers: number of dense layers.
        head: a name of ``HEADS``.
        open_bias: initial bias of the last dense layer; None keeps torch's default. With 1 and small weights the gate
            begins open for nearly every sample, where equation 5 gives a gradient, |x| <= 1.
        flatten: read flattened maps instead of their averages over pixels.
        number: of the gate in its network.

    Attributes:
        threshold: logits above which units open (units,); 0 unless a ``Budget`` moves it, as in the paper.
        ste_window: a logit has a gradient within this distance of its threshold; 1 in the paper.
        logit_scale: factor on what the last dense layer reads; 1 in the paper.
        backprop_to_input: let the gradient of the gate flow into the map that it reads, as in the paper.
        random_drop: share of the training samples in which units are dropped at random; 0 in the paper.
        noise_key: of the next forward pass, where the caller sets it.
        frozen: decisions do not depend on what the gate reads.
        constant: 0 or 1 if the gate is frozen to that for all units, else None. Then neither the gate nor a branch
            that it closes needs to be computed.
        on_decided: called after each decision, if set; not while the network is compiled.
    """

    is_replicated = True  # buffers follow from global means, so they are equal on all ranks
    threshold: Tensor
    ste_window: Tensor
    logit_scale: Tensor
    _frozen: Tensor | None

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
        self.frozen = False
        self.constant: int | None = None
        self.on_decided: Callable[[Gate], None] | None = None
        self.backprop_to_input = True
        self.random_drop = 0.0
        self.noise_key: NoiseKey | None = None
        # Noise key and logits of the latest forward pass in training, for its recomputation.
        self._latest_pass: tuple[NoiseKey | None, Tensor | None] = None, None
        self._leaf: Tensor | None = None  # decisions recorded without a graph
        self._passes = torch.zeros((), dtype=torch.int64)  # a number would be compiled into the graph
        self._latest: tuple[Tensor, Tensor] | None = None
        widths = [in_features, *[hidden] * (dense_layers - 1)]
        body: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            body += [nn.Linear(narrow, wide), nn.BatchNorm1d(wide), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*body)
        self.last = nn.Linear(widths[-1], units)
        self.head = HEADS[head](units, number)
        self.register_buffer("_frozen", None, persistent=False)
        self.register_buffer("threshold", torch.zeros(units))
        self.register_buffer("ste_window", torch.ones(()))
        self.register_buffer("logit_scale", torch.ones(()))
        if open_bias is not None:
            # Small weights: a sample's logit begins near the bias, whatever the features are.
            nn.init.constant_(self.last.bias, open_bias)
            nn.init.normal_(self.last.weight, std=0.04 / math.sqrt(widths[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the gate reads, (B, C, H, W) or tokens (B, T, C), for branch and shortcut, and its decisions.

        These are zeros and ones (B, units) in the dtype of the gate's weights. Backward sums all three gradients.
        """
        # What is decided costs nothing: neither features nor gating layers are computed.
        if self._frozen is not None:
            decisions = self._frozen.expand(x.shape[0], -1)
            self.record(decisions, decisions)
            return x, x, decisions
        recomputed = in_recomputation()
        noise_key = self._take_noise_key(len(x), recomputed) if self.training else None
        norms = without_norm_updates(self.body) if recomputed else _UNCHANGED
        # One sample has no variance of its own; synchronized norms see those of other ranks.
        if self.training and len(x) == 1 and any(type(module) is nn.BatchNorm1d for module in self.body):
            norms = in_eval_mode(self.body)
        # Thousands of pixels are averaged in fp32, and a decision is not worth a bf16 rounding. Each gate pays for
        # this: ``torch.autocast(enabled=False)`` costs ten times as much.
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        torch.set_autocast_enabled(device, False)
        try:
            first, second, features = self._features(x)
            features = features.to(self.last.weight.dtype)
            with norms:
                # One operation in place of the layers, where it can be: on CPUs they cost ten times as much.
                results = fused_gating(self, features, noise_key) or self._call_layers(features, noise_key)
        finally:
            torch.set_autocast_enabled(device, autocast)
        return first, second, self._recorded(*results, noise_key, recomputed)

    def _recorded(
        self, applied: Tensor, decisions: Tensor, logits: Tensor, noise_key: NoiseKey | None, recomputed: bool
    ) -> Tensor:
        """Record the decisions, and return those that are applied to the network."""
        logits = logits.detach()
        if recomputed:
            latest = self._latest_pass[1]
            if (self.head.draws or self.random_drop) and latest is not None:
                # Tolerant of rounding, and of steps whose values are not finite, which are skipped later: the logits of
                # other samples differ by much more.
                same = logits.shape == latest.shape and torch.allclose(logits, latest, 1e-3, 1e-4, equal_nan=True)
                if not same:
                    raise UserError(
                        "a checkpointed gate with noise was recomputed for another forward pass than its latest: "
                        "call backward before the next forward pass"
                    )
            return applied if self._leaf is None else MeansGradient.apply(applied, decisions, self._leaf)
        self._leaf = None
        if self.training:
            self._latest_pass = noise_key, logits
        # Without a graph in training, a reentrant checkpoint may follow, whose recomputation needs the gradient of
        # the gate means (``MeansGradient``).
        if self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._leaf = decisions = decisions.detach().clone().requires_grad_()
        self.record(decisions, logits)
        return applied

    def record(self, decisions: Tensor, logits: Tensor) -> None:
        """Record decisions and logits (B, units), these detached, of this forward pass."""
        # A recomputation repeats a pass whose decisions have been popped already.
        if in_recomputation():
            return
        self._latest = decisions, logits
        # A call would break the compiled graph.
        if not torch.compiler.is_compiling() and self.on_decided is not None:
            self.on_decided(self)

    def pop_decisions(self) -> tuple[Tensor, Tensor] | None:
        """Return decisions and logits (B, units) of the latest forward pass, once.

        In training the graph is attached to the decisions. None if there was no pass since the last call.
        """
        latest, self._latest = self._latest, None
        return latest

    def freeze(self, opened: Tensor | None) -> None:
        """Decide the same for every sample from now on.

        Args:
            opened: open units (units,), bool; None: evaluate the gate again.
        """
        self._frozen = None if opened is None else opened.to(self.threshold)
        self.frozen = opened is not None
        self.constant = int(opened[0]) if opened is not None and bool((opened == opened[0]).all()) else None

    def __getstate__(self) -> dict[str, Any]:
        # The graph of recorded decisions cannot be copied, and a copy has no use for it.
        return {**self.__dict__, "_latest": None, "on_decided": None}

    def _take_noise_key(self, batch: int, recomputed: bool) -> NoiseKey | None:
        """Return the noise key that the caller has set for this pass, else one that counts passes, if there is noise.

        In a recomputation: that of the latest forward pass.
        """
        # Other noise in the recomputation would give gradients of decisions that the forward pass did not make.
        if recomputed:
            return self._latest_pass[0]
        key, self.noise_key = self.noise_key, None
        if key is None and (self.head.draws or self.random_drop):
            self._passes = self._passes + 1
            key = NoiseKey(0, self._passes, distributed.rank() * batch)
        return key

    def _call_layers(self, features: Tensor, noise_key: NoiseKey | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return (B, units) each: decisions that are applied, the gate's own, and their logits."""
        logits = self.last(self.body(features) * self.logit_scale)
        decisions = applied = self.head((logits - self.threshold) / self.ste_window, noise_key)
        # Gate means count the gate's own decisions: drops would keep every mean away from 1.
        if noise_key is not None and self.random_drop:
            applied = random_drop(decisions, self.random_drop, noise_key, self.head.number)
        return applied, decisions, logits

    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.flatten or x.dim() == 3:
            read = x if self.backprop_to_input else x.detach()
            wide = torch.promote_types(x.dtype, torch.float32)
            return x, x, read.flatten(1) if self.flatten else read.mean(1, dtype=wide)
        return fan_out(x) if self.backprop_to_input else (x, x, pixel_mean(x))
