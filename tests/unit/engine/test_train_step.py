"""One step on one process: soft labels, images that were left out, and what the record says of both."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dist_prune.engine.train_step import Control, train_step
from dist_prune.methods import Phase


class BareEngine:
    """What a step needs of an engine, in plain torch: gradients add up in the module."""

    def __init__(self, module: nn.Module, micro: int) -> None:
        self.module, self.forward = module, module
        self.device = torch.device("cpu")
        self.batching = SimpleNamespace(micro=micro)

    def backward(self, loss) -> None:
        loss.backward()

    def step(self) -> None:
        pass


class Watched(Phase):
    """Remembers which sample of the global batch each micro-batch was said to begin with."""

    def before_forward(self, module, step, first_sample, epoch) -> None:
        self.begins = [*getattr(self, "begins", []), first_sample]


def trained(batches, **said):
    torch.manual_seed(0)
    phase = Watched("toy", nn.Linear(5, 3), epochs=1)
    record = train_step(BareEngine(phase.module, micro=4), phase, batches, 0.0, Control(**said))
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
    assert (record.samples, record.skipped) == (9, 3)
    _, record = trained([batch(4)])
    assert (record.samples, record.skipped) == (4, 0)


def test_a_micro_batch_begins_where_it_would_if_nothing_were_left_out_before():
    phase, _ = trained([batch(3), batch(4), batch(2)], skipped=3)
    assert phase.begins == [0, 4, 8]
