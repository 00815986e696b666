"""One step on one process: soft labels, images that were left out, and what the record says of both."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dist_prune.methods import Phase
from dist_prune.training.step import RankFlags, seed_step_rng, train_step


class BareEngine:
    """What a step needs of an engine, in plain torch: gradients add up in the module."""

    gathers_weights = False
    lr = 0.1
    refusing_partitioned_weights = contextlib.nullcontext()

    def __init__(self, module: nn.Module, micro: int) -> None:
        self.module, self.forward = module, module
        self.device = torch.device("cpu")
        self.batching = SimpleNamespace(micro=micro)

    def backward(self, loss) -> None:
        loss.backward()

    def step(self) -> bool:
        return all(p.grad.isfinite().all() for p in self.module.parameters())


class Watched(Phase):
    """Remembers which sample of the global batch each micro-batch was said to begin with."""

    def before_forward(self, module, step, first_sample, epoch) -> None:
        self.begins = [*getattr(self, "begins", []), first_sample]


def trained(batches, **said):
    torch.manual_seed(0)
    phase = Watched("toy", nn.Linear(5, 3), epochs=1)
    record = train_step(BareEngine(phase.module, micro=4), phase, batches, 0.0, RankFlags(**said))
    return phase, record


def batch(samples: int = 4):
    return torch.randn(samples, 5), torch.randint(0, 3, (samples,))


def test_labels_that_are_certain_train_as_their_numbers_do():
    images, labels = batch()
    phase, record = trained([(images, labels)])
    soft, soft_record = trained([(images, F.one_hot(labels, 3).float())])
    assert soft_record.losses == pytest.approx(record.losses)
    assert soft_record.accuracy == record.accuracy
    torch.testing.assert_close(soft.module.weight.grad, phase.module.weight.grad)


def test_the_task_loss_of_mixed_labels_is_the_mixture_of_their_losses():
    images, first = batch()
    second = (first + 1) % 3
    shares = torch.tensor([[0.7], [0.2], [0.5], [1.0]])
    mixed = shares * F.one_hot(first, 3) + (1 - shares) * F.one_hot(second, 3)
    phase = Phase("toy", nn.Linear(5, 3), epochs=1, label_smoothing=0.1)
    logits = phase.module(images)
    each = [F.cross_entropy(logits, y, reduction="none", label_smoothing=0.1) for y in (first, second)]
    expected = (shares[:, 0] * each[0] + (1 - shares[:, 0]) * each[1]).sum()
    torch.testing.assert_close(phase.task_loss(logits, mixed), expected)
    assert phase.task_loss(logits.bfloat16(), mixed).dtype == torch.float32


def test_accuracy_counts_the_most_likely_class_of_mixed_labels():
    images, labels = batch(60)
    mixed = 0.6 * F.one_hot(labels, 3) + 0.4 * F.one_hot((labels + 1) % 3, 3)
    phase, record = trained([(images, mixed)])
    with torch.no_grad():
        right = (phase.module(images).argmax(1) == labels).float().mean().item()
    assert 0 < right < 1
    assert record.accuracy == pytest.approx(right)


def test_the_record_counts_the_images_that_are_there_and_those_left_out():
    _, record = trained([batch(3), batch(4), batch(2)], skipped=3)
    assert (record.samples, record.flags.skipped) == (9, 3)
    _, record = trained([batch(4)])
    assert (record.samples, record.flags.skipped) == (4, 0)


def test_a_micro_batch_begins_where_it_would_if_nothing_were_left_out_before():
    phase, _ = trained([batch(3), batch(4), batch(2)], skipped=3)
    assert phase.begins == [0, 4, 8]


def test_a_step_that_is_not_finite_is_not_applied_and_leaves_buffers_as_they_were():
    phase = Watched("toy", nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), epochs=1)
    images, labels = batch()
    before = [buffer.clone() for buffer in phase.module.buffers()]
    images[0, 0] = torch.inf
    record = train_step(BareEngine(phase.module, micro=4), phase, [(images, labels)], 0.0)
    assert not record.applied
    assert all(torch.equal(a, b) for a, b in zip(phase.module.buffers(), before, strict=True))
    record = train_step(BareEngine(phase.module.apply(lambda m: m.zero_grad()), micro=4), phase, [batch()], 0.0)
    assert record.applied
    assert not torch.equal(next(phase.module.buffers()), before[0])


def test_a_loss_that_is_not_finite_spoils_gradients_that_would_be():
    """So that the engine refuses the step on every rank, although only one has such a loss."""
    phase = Watched("toy", nn.Linear(5, 3), epochs=1)
    phase.task_loss = lambda logits, labels: logits.sum() + torch.inf
    assert not train_step(BareEngine(phase.module, micro=4), phase, [batch()], 0.0).applied


def test_what_a_step_draws_depends_on_seed_and_step_alone():
    def draws(seed: int, step: int):
        seed_step_rng(seed, step)
        return torch.rand(4).tolist()

    first = draws(1, 7)
    torch.rand(3)
    assert draws(1, 7) == first
    assert first not in (draws(1, 8), draws(2, 7))
