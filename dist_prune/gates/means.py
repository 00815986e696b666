"""Gate means over the global batch: what everything that concerns structure reads.

With rank r holding n_r samples and gate sums s_r, N = sum of n_r and W ranks whose gradients the engine
averages, the value is g = sum(s_r) / N and the gradient that of W * s_r / N: after averaging, gradients equal
those of one process with all N samples. The task loss of a rank is likewise W / N times its local sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.gates.gate import Gate
from dist_prune.gates.insertion import follow_logits, gated_modules


class GateMeans(NamedTuple):
    """What the gates did over the global batch.

    values: mean activations, shape (all units,), fp32, in [0, 1], with the gradient of this rank's part
    attached; sizes: the number of units of each site, in the order of ``sites(model)``; logits: mean logits
    (all units,), fp32, detached: what a ``Budget`` ranks units by.
    """

    values: Tensor
    sizes: tuple[int, ...]
    logits: Tensor


class LocalGates(NamedTuple):
    """This rank's part of a forward pass, fp32: sums over its ``samples`` of decisions and of logits (all units,)."""

    sums: Tensor
    logits: Tensor
    samples: int
    sizes: tuple[int, ...]


def local_gates(model: nn.Module) -> LocalGates:
    """Take the decisions of the latest forward pass of every gate and add them up over samples.

    Raises RuntimeError if a gate has seen no forward pass since the last call, or if there is no gate.
    """
    return _add_up(gates_of(model))


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """The gates by the names of the modules that they gate. Raises RuntimeError if there is none."""
    gates = {name: gated.gate for name, gated in gated_modules(model)}
    if not gates:
        raise RuntimeError("this model has no gates: call attach_gates first")
    return gates


def _add_up(gates: Mapping[str, Gate]) -> LocalGates:
    taken = {name: gate.take_decisions() for name, gate in gates.items()}
    missing = [name for name, latest in taken.items() if latest is None]
    if missing:
        raise RuntimeError(
            f"gate means need a forward pass since the last call; the gate of {missing[0]} saw none"
        )
    decisions, logits = zip(*(latest for latest in taken.values() if latest is not None), strict=True)
    # bf16 sums saturate at 256
    sums, logit_sums = (torch.cat(parts, dim=1).float().sum(0) for parts in (decisions, logits))
    return LocalGates(sums, logit_sums, decisions[0].shape[0], tuple(d.shape[1] for d in decisions))


class MeanAccumulator:
    """Means over the micro-batches of one optimizer step so far, on all ranks (gradient accumulation).

    One all-reduce a micro-batch carries the sums of decisions and logits, the count and any scalars that the caller
    wants summed over ranks. The value is the mean over everything in the window so far, the gradient goes through
    the current micro-batch; so k identical micro-batches give what one gives.
    """

    def __init__(self) -> None:
        self._totals = torch.zeros(())
        self.samples = torch.zeros(())  # of the window so far, on all ranks
        self.micro_samples = torch.zeros(())  # of the current micro-batch, on all ranks
        self.scalars = torch.zeros(0)  # of the window so far, summed over ranks (k,)

    def begin(self, local: LocalGates, scalars: Tensor) -> distributed.AsyncAllReduce:
        """Begin the all-reduce of a micro-batch: of this rank's gates, and of scalars (k,)."""
        count = local.sums.new_full((1,), local.samples)
        return distributed.AsyncAllReduce(torch.cat([local.sums, local.logits, count, scalars.float()]))

    def add(self, local: LocalGates, total: Tensor) -> GateMeans:
        """Add a micro-batch, ``total`` being what its ``begin`` came to. Nothing here waits for the device."""
        self._totals = self._totals + total
        units = local.sums.numel()
        sums, logits, rest = self._totals.tensor_split([units, 2 * units])
        self.micro_samples, self.samples, self.scalars = total[2 * units], rest[0], rest[1:]
        mine = local.sums * (distributed.world_size() / self.micro_samples)
        return GateMeans(mine + (sums / self.samples - mine.detach()), local.sizes, logits / self.samples)


class AsyncGateMeans:
    """Gate means of a forward pass, whose all-reduce begins as soon as the last gate has decided.

    A context manager around that pass; ``wait`` comes after it. So ranks exchange what their gates did while they
    compute what lies behind the last of them; of a network without gates, they exchange the count and the scalars
    during the whole pass. ``gates``: as ``gates_of`` found them, or none; ``samples``: of this rank's micro-batch;
    ``scalars`` (k,), on the network's device: see ``MeanAccumulator``; ``early``: False if it has to begin after the
    pass, because that has other collectives of its own.
    """

    def __init__(
        self,
        window: MeanAccumulator,
        gates: Mapping[str, Gate],
        samples: int,
        scalars: Tensor,
        early: bool = True,
    ) -> None:
        self._window, self._gates, self._scalars, self._early = window, gates, scalars, early
        self._undecided = set(gates.values())
        self._local = LocalGates(scalars.new_empty(0), scalars.new_empty(0), samples, ())
        self._pending: distributed.AsyncAllReduce | None = None

    def __enter__(self) -> AsyncGateMeans:
        if self._early:
            for gate in self._undecided:
                gate.listener = self._hear
            if not self._gates:
                self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        for gate in self._gates.values():
            gate.listener = None

    def wait(self) -> GateMeans:
        """The means of the window so far. Raises RuntimeError if a gate was not asked."""
        if self._pending is None:  # gates say nothing in the middle of a compiled graph
            self._begin()
        assert self._pending is not None
        return self._window.add(self._local, self._pending.wait())

    def _hear(self, gate: Gate) -> None:
        self._undecided.discard(gate)
        if not self._undecided and self._pending is None:
            self._begin()

    def _begin(self) -> None:
        # The last gate may decide inside a reentrant checkpoint, which runs without a graph.
        with torch.enable_grad():
            if self._gates:
                self._local = _add_up(self._gates)
        self._pending = self._window.begin(self._local, self._scalars)


def gate_means(model: nn.Module) -> GateMeans:
    """Mean activation of every unit over the global batch of the latest forward pass; all ranks call it.

    One all-reduce. Raises RuntimeError if there was no forward pass since the last call.
    """
    local, window = local_gates(model), MeanAccumulator()
    means = window.add(local, window.begin(local, local.sums.new_empty(0)).wait())
    follow_logits(model, means.logits)
    return means
