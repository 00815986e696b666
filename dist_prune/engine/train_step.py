"""One optimizer step: forward, gate means over all ranks, losses, backward, for each micro-batch."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.engine.deepspeed_engine import Engine
from dist_prune.gates import GateMeans, Window, local_gates
from dist_prune.gates.means import LocalGates
from dist_prune.methods import Phase, Step

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Control:
    """What this rank tells the others with a step.

    stop: it was asked to stop; failed: its batches stand in for data that could not be read; skipped: images
    that were left out of them because they could not be read; save: it is time for a checkpoint.
    """

    stop: bool = False
    failed: bool = False
    skipped: int = 0
    save: bool = False


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step showed, over the whole global batch.

    losses: ``total``, ``task`` and each term, means over samples; accuracy: share of right answers;
    means: gate means (all units,), on the CPU, empty without gates; logits: their mean logits; samples: images
    in the step; skipped: images that all ranks left out; stop, failed, save: whether any rank says so (see
    ``Control``); applied: False if nothing was learned, since loss or gradients were not finite.
    """

    losses: dict[str, float]
    accuracy: float
    means: Tensor
    logits: Tensor
    samples: int
    skipped: int
    stop: bool
    failed: bool
    save: bool
    applied: bool


def draw_by_step(seed: int, step: int) -> None:
    """Let what a step draws from torch's generator (dropout) depend on seed, step and rank alone.

    So a resumed run draws what the uninterrupted one would have, and no checkpoint has to hold generators.
    """
    key = f"{seed} {step} {distributed.rank()}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))


def train_step(
    engine: Engine,
    phase: Phase,
    batches: Sequence[Batch],
    epoch: float,
    control: Control = Control(),
    number: int = 0,
) -> StepRecord:
    """Train on one global batch, the run's ``number``-th; ``batches``: this rank's micro-batches (images, labels).

    They are on the engine's device; labels are numbers (B,) or probabilities (B, classes). One all-reduce a
    micro-batch: unit sums, count, loss, right answers and control scalars together (the latter only need to be
    said once). The task loss of a rank is W / N times its local sum, so that averaged gradients are those of the
    joined batch. Where loss or gradients are not finite on any rank, nothing changes on all of them.
    """
    buffers_before = _Buffers(engine.module)
    applied = True
    window = Window()
    totals: Tensor = torch.zeros((), device=engine.device)
    terms_seen: dict[str, Tensor] = {}
    means = totals.new_empty(0)
    for turn, (images, labels) in enumerate(batches):
        place = turn * distributed.world_size() + distributed.rank()
        phase.before_forward(engine.module, number, place * engine.batching.micro, epoch)
        logits = engine.forward(images)
        task_sum = phase.task_loss(logits, labels)
        gates = _gates(engine, phase, labels)
        right = (logits.detach().argmax(1) == _most_likely(labels)).sum()
        said = control if turn == 0 else Control()
        told = task_sum.new_tensor(
            [float(told) for told in (said.stop, said.failed, said.skipped, said.save)]
        )
        scalars = torch.cat([torch.stack([task_sum.detach(), right.float()]), told])
        means, reduced = window.reduce(gates.sums, gates.samples, torch.cat([scalars, gates.logits]))
        totals = totals + reduced
        task = task_sum * (distributed.world_size() / window.micro_samples)
        logits_so_far = totals[len(scalars) :].detach() / window.samples
        gate_means = GateMeans(means, gates.sizes, logits_so_far) if phase.has_gates else None
        terms = phase.loss_terms(Step(engine.module, images, labels, logits, gate_means, epoch))
        engine.backward(_bad_for_all(sum(terms.values(), start=task), reduced[0]))
        applied = engine.step()
        for name, value in terms.items():
            terms_seen[name] = terms_seen.get(name, torch.zeros_like(task)) + value.detach() / len(batches)
    if not applied:  # norms have averaged what is not finite
        buffers_before.put_back()
    return _record(window, totals, terms_seen, means.detach(), applied)


class _Buffers:
    """A copy of a module's buffers, packed: hundreds of norms cost one operation a dtype, not one a buffer."""

    def __init__(self, module: nn.Module) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in module.buffers():
            by_dtype[buffer.dtype].append(buffer)
        self._groups = list(by_dtype.values())
        self._copies = [torch.cat([buffer.flatten() for buffer in group]) for group in self._groups]

    def put_back(self) -> None:
        """Overwrite the buffers, in place."""
        for group, copy in zip(self._groups, self._copies, strict=True):
            for buffer, before in zip(group, copy.split([b.numel() for b in group]), strict=True):
                buffer.copy_(before.view_as(buffer))


def _bad_for_all(loss: Tensor, global_loss: Tensor) -> Tensor:
    """``loss``; but if it, or the loss over all ranks, is not finite, its gradients are not either, on any rank.

    For then every engine refuses the step, with no word between ranks and no wait for the device.
    """
    return loss * (1 + 0 * (loss.detach() + global_loss))


def _most_likely(labels: Tensor) -> Tensor:
    """The classes (B,) of labels that may be probabilities (B, classes)."""
    return labels.argmax(1) if labels.dim() == 2 else labels


def _gates(engine: Engine, phase: Phase, labels: Tensor) -> LocalGates:
    if phase.has_gates:
        return local_gates(engine.module)
    none = torch.empty(0, device=engine.device)
    return LocalGates(none, none, len(labels), ())


def _record(
    window: Window, totals: Tensor, terms: dict[str, Tensor], means: Tensor, applied: bool
) -> StepRecord:
    """Read the figures off the device: the only place of a step that waits for it."""
    samples = torch.as_tensor(window.samples, device=totals.device).reshape(1)
    seen = torch.cat([means, totals, samples, *(t.reshape(1) for t in terms.values())]).cpu()
    units = means.numel()
    means, sums, logit_sums, rest = seen.split([units, 6, units, 1 + len(terms)])
    (loss_sum, right, stops, failures, skipped, saves), (count, *values) = sums.tolist(), rest.tolist()
    losses = {"task": loss_sum / count, **dict(zip(terms, values, strict=True))}
    losses["total"] = sum(losses.values())
    return StepRecord(
        losses,
        right / count,
        means,
        logit_sums / count,
        samples=int(count),
        skipped=int(skipped),
        stop=stops > 0,
        failed=failures > 0,
        save=saves > 0,
        applied=applied,
    )
