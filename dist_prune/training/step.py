"""One optimizer step: forward, gate means over all ranks, losses, backward, for each micro-batch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dist_prune import distributed
from dist_prune.data import Batch
from dist_prune.engine.deepspeed_engine import Engine
from dist_prune.errors import UserError
from dist_prune.gates.means import GateMeans, MeanAccumulator
from dist_prune.gates.wrappers import gates_of
from dist_prune.methods import Phase, Step


class RankFlags(NamedTuple):
    """Flags of one rank; their sums over ranks come with the step's all-reduce."""

    stop: int = 0  # a stop was requested
    failed: int = 0  # the batches stand in for data that could not be read
    skipped: int = 0  # images missing from the batches because they could not be read
    save: int = 0  # it is time for a checkpoint


_NO_FLAGS = RankFlags()


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step over the whole global batch."""

    losses: dict[str, float]  # ``total``, ``task`` and each term, means over samples
    accuracy: float  # share of correct predictions
    means: Tensor  # gate means (all units,), on the CPU, empty without gates
    logits: Tensor  # mean logits of the same units
    samples: int  # images in the step
    flags: RankFlags  # sums over all ranks
    applied: bool  # False if the step changed nothing, because loss or gradients were not finite


def seed_step_rng(seed: int, step: int) -> None:
    """Seed torch's generator (dropout) by seed, step and rank alone."""
    # A resumed run then draws the numbers of the uninterrupted one, and no checkpoint has to hold generators. A hash
    # makes one seed of the three numbers.
    key = f"{seed} {step} {distributed.rank()}".encode()
    torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))


def train_step(
    engine: Engine, phase: Phase, batches: Sequence[Batch], epoch: float, flags: RankFlags = _NO_FLAGS, number: int = 0
) -> StepMetrics:
    """Train on one global batch.

    All-reduces: one per micro-batch, of gate sums, counts and flags, overlapped with the rest of the forward pass;
    one per step, of loss and correct predictions. If loss or gradients are not finite on any rank, the step changes
    nothing on all of them.

    Args:
        engine: The engine of the phase.
        phase: The phase in training.
        batches: This rank's micro-batches on the engine's device: images (views * B, C, H, W) and labels, numbers
            (B,) or probabilities (B, classes).
        epoch: Epochs since the start of the phase, fraction included.
        flags: This rank's flags.
        number: Optimizer steps of the run so far.
    """
    buffers = list(engine.module.buffers())
    before = [buffer.clone() for buffer in buffers]
    applied = True
    accumulated = MeanAccumulator(gates_of(engine.module) if phase.has_gates else {})
    scores = torch.zeros(2, device=engine.device)
    terms_seen: dict[str, Tensor] = {}
    for index, (images, labels, samples) in enumerate(Batch(*batch) for batch in batches):
        place = index * distributed.world_size() + distributed.rank()
        # Every view of an image has gate noise of its own.
        first_sample = place * engine.batching.micro * phase.views
        phase.before_forward(engine.module, number, first_sample, epoch)
        # Flags are summed over the window, so only its first micro-batch carries them.
        scalars = torch.tensor(flags if index == 0 else _NO_FLAGS, dtype=torch.float32, device=engine.device)
        with accumulated.collect(len(images), scalars, early=not engine.gathers_weights):
            logits = phase.forward(engine.forward, images)
        means = accumulated.wait()
        task_sum = phase.task_loss(logits, labels)
        # Mixed labels are probabilities: the most likely class counts.
        classes = labels.argmax(1) if labels.dim() == 2 else labels
        right = (logits.detach()[: len(labels)].argmax(1) == classes).sum()
        scores = scores + torch.stack([task_sum.detach(), right.float()])
        # W / N times the local sum: gradients averaged over ranks are then those of the joined batch. The window
        # counts views, the loss is per image.
        task = task_sum * (distributed.world_size() * phase.views / accumulated.micro_samples)
        found = means if phase.has_gates else None
        with engine.refusing_partitioned_weights:
            terms = phase.loss_terms(Step(engine.module, images, labels, logits, found, epoch, samples))
        for name, value in terms.items():
            if name in ("task", "total") or value.dim():
                raise UserError(
                    f"loss term '{name}': terms are scalars, and 'task' and 'total' are names of the loss itself"
                )
        loss = sum(terms.values(), start=task)
        # A loss that is not finite gets gradients that are not finite either. Averaged, they make those of all ranks
        # so, and every engine refuses the step, without a word between ranks and without a wait for the device.
        engine.backward(loss * (1 + 0 * loss.detach()))
        applied = engine.step()
        for name, value in terms.items():
            terms_seen[name] = terms_seen.get(name, torch.zeros_like(task)) + value.detach() / len(batches)
    if not applied:
        # Batch norms have averaged values that are not finite.
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    else:
        with engine.refusing_partitioned_weights:
            projections = phase.project(engine.module, engine.lr)
        if projections:
            engine.project(projections)
    # Ranks see different images, so a term of one rank is not that of the global batch.
    own = [value / distributed.world_size() for value in terms_seen.values()]
    totals = distributed.all_reduce_sum(torch.cat([scores, *(value.reshape(1).float() for value in own)]))
    return _record(accumulated, means, totals, list(terms_seen), applied, phase.views)


def _record(
    accumulated: MeanAccumulator, means: GateMeans, totals: Tensor, terms: Sequence[str], applied: bool, views: int
) -> StepMetrics:
    """Return the metrics of a step."""
    parts = [means.values.detach(), means.logits, accumulated.samples.reshape(1), accumulated.scalars, totals]
    # One copy for everything: each copy from the device waits for all that it still computes.
    values, logits, samples, flags, totals = torch.cat(parts).cpu().split([part.numel() for part in parts])
    count = samples.item() / views
    loss_sum, right, *of_terms = totals.tolist()
    losses = {"task": loss_sum / count, **dict(zip(terms, of_terms, strict=True))}
    losses["total"] = sum(losses.values())
    return StepMetrics(losses, right / count, values, logits, int(count), RankFlags(*map(int, flags.tolist())), applied)
