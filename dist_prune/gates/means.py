"""Gate means over the global batch: everything that concerns structure reads these, and nothing else.

With rank r holding n_r samples and gate sums s_r, N = sum of n_r and W ranks whose gradients the engine averages, the
value is g = sum(s_r) / N and the gradient that of W * s_r / N: after averaging, gradients equal those of one process
with all N samples. The task loss of a rank is likewise W / N times its local sum.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.gates.gate import Gate
from dist_prune.gates.wrappers import gates_of


class GateMeans(NamedTuple):
    """Means of decisions and logits over the global batch.

    Attributes:
        values: mean activations (all units,), fp32, in [0, 1], with the gradient of this rank's part attached.
        sizes: number of units of each site, in the order of ``sites(model)``.
        logits: mean logits (all units,), fp32, detached; a ``Budget`` ranks units by them.
    """

    values: Tensor
    sizes: tuple[int, ...]
    logits: Tensor


def sum_decisions(gates: Mapping[str, Gate]) -> tuple[Tensor, Tensor, int]:
    """Pop the decisions of the latest forward pass and sum them over this rank's samples.

    Returns:
        The sums of decisions and of logits, (all units,) each, fp32, and the number of samples.

    Raises:
        RuntimeError: a gate has seen no forward pass since the last call.
    """
    popped = {name: gate.pop_decisions() for name, gate in gates.items()}
    missing = [name for name, latest in popped.items() if latest is None]
    if missing:
        raise RuntimeError(f"gate means need a forward pass since the last call; the gate of {missing[0]} saw none")
    decisions, logits = zip(*(latest for latest in popped.values() if latest is not None), strict=True)
    # bf16 sums saturate at 256.
    sums, logit_sums = (torch.cat(parts, dim=1).float().sum(0) for parts in (decisions, logits))
    return sums, logit_sums, len(decisions[0])


class MeanAccumulator:
    """Gate means of one optimizer step, over all ranks and the micro-batches so far (gradient accumulation).

    For each micro-batch::

        with accumulator.collect(samples, scalars):
            ...  # forward pass
        means = accumulator.wait()

    The value is the mean over all micro-batches so far; the gradient goes through the current one. So k identical
    micro-batches give what one gives.

    Args:
        gates: as ``gates_of`` returns them; may be empty.

    Attributes:
        samples: of all micro-batches so far, on all ranks.
        micro_samples: of the current micro-batch, on all ranks.
        scalars: of all micro-batches so far, summed over ranks (k,).
    """

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self._gates = gates
        self._sums = torch.zeros(0)
        self._total: Tensor | None = None
        self._work: dist.Work | None = None
        self._totals = torch.zeros(())
        self.samples, self.micro_samples = torch.zeros(2)
        self.scalars = torch.zeros(0)

    @contextlib.contextmanager
    def collect(self, samples: int, scalars: Tensor, early: bool = True) -> Iterator[None]:
        """Collect the decisions of a forward pass and start their all-reduce.

        Args:
            samples: number of samples of this rank's micro-batch, for networks without gates.
            scalars: further numbers to sum over ranks (k,), on the network's device.
            early: False if the forward pass has collectives of its own, whose order has to be the same on all ranks.
        """
        undecided = set(self._gates.values())

        def on_decided(gate: Gate) -> None:
            undecided.discard(gate)
            if not undecided and self._total is None:
                self._start(samples, scalars)

        # Ranks exchange sums while they compute what lies behind the last gate; without gates, during the whole pass.
        if early and not self._gates:
            self._start(samples, scalars)
        elif early:
            for gate in self._gates.values():
                gate.on_decided = on_decided
        try:
            yield
        finally:
            for gate in self._gates.values():
                gate.on_decided = None
        # Compiled gates make no call.
        if self._total is None:
            self._start(samples, scalars)

    def _start(self, samples: int, scalars: Tensor) -> None:
        self._sums = logits = torch.empty(0, device=scalars.device)
        if self._gates:
            # The last gate may decide inside a reentrant checkpoint, which runs without a graph.
            with torch.enable_grad():
                self._sums, logits, samples = sum_decisions(self._gates)
        # One collective for everything: on a cluster each one costs its latency, whatever it carries.
        packed = [self._sums, logits, self._sums.new_full((1,), samples), scalars.to(self._sums)]
        self._total = torch.cat(packed).detach()
        self._work = distributed.start_all_reduce(self._total)

    def wait(self) -> GateMeans:
        """Return the means of all micro-batches so far. The device waits for other ranks, not the program."""
        assert self._total is not None, "collect comes first"
        total, self._total = self._total, None
        if self._work is not None:
            self._work.wait()
        self._totals = self._totals + total
        units = self._sums.numel()
        sums, logits, rest = self._totals.tensor_split([units, 2 * units])
        self.micro_samples, self.samples, self.scalars = total[2 * units], rest[0], rest[1:]
        # The value is global, the gradient that of this rank's samples: no collective in backward.
        mine = self._sums * (distributed.world_size() / self.micro_samples)
        values = mine + (sums / self.samples - mine.detach())
        return GateMeans(values, tuple(gate.units for gate in self._gates.values()), logits / self.samples)


def follow_logits(model: nn.Module, logits: Tensor) -> None:
    """Give the heads the units' mean logits over the global batch (all units,), after a step."""
    gates = gates_of(model).values()
    for gate, part in zip(gates, logits.split([gate.units for gate in gates]), strict=True):
        gate.head.follow(part)


def gate_means(model: nn.Module) -> GateMeans:
    """Return the mean activation of every unit over the global batch of the latest forward pass.

    All ranks call it; one all-reduce.

    Raises:
        RuntimeError: there was no forward pass since the last call.
    """
    accumulator = MeanAccumulator(gates_of(model))
    with accumulator.collect(0, torch.empty(0)):
        pass  # the forward pass is over
    means = accumulator.wait()
    follow_logits(model, means.logits)
    return means
