"""Activation checkpointing: recomputed passes draw the same noise, and losses, gradients and statistics are equal."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from unit_helpers import images

from dist_prune import UserError, attach_gates, build_model, gate_means, polarization
from dist_prune.gates.gate import Gate
from dist_prune.gates.heads import HEADS
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.wrappers import checkpoint_blocks, gates_of, set_noise_key

REENTRANT = pytest.mark.parametrize("reentrant", [False, True])


def dropping(kind: str = "layer", head: str = "ste") -> nn.Module:
    torch.manual_seed(0)
    model = attach_gates(build_model("resnet8", num_classes=10, width=8), kind, head=head, open_bias=0.0)
    for gate in gates_of(model).values():
        gate.random_drop = 0.5
        nn.init.normal_(gate.last.weight)
    return model.double()


def recomputed(block: nn.Module, reentrant: bool) -> None:
    """As an own loop, or DeepSpeed's reentrant function, would checkpoint a block."""
    plain = block.forward
    block.forward = lambda x: checkpoint(plain, x, use_reentrant=reentrant)


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]


def train(model: nn.Module, keyed: bool, steps: int = 2) -> list[torch.Tensor]:
    """Losses, gate means and gradients of a few steps, in which the gate means have a say."""
    found, labels = [], torch.arange(16) % 10
    for step in range(steps):
        x = images(16, dtype=torch.float64, size=8) if step < 0 else DATA[step].clone().requires_grad_()
        if keyed:
            set_noise_key(model, NoiseKey(1, step, 0))
        logits = model(x)
        means = gate_means(model)
        loss = F.cross_entropy(logits, labels) + polarization(means, 3.0) + 0.5 * means.values.sum()
        model.zero_grad()
        loss.backward()
        found += [loss.detach(), means.values.detach()]
        found += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad if p.grad is not None else 0.0
    return found


DATA = torch.randn(2, 16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@REENTRANT
@pytest.mark.parametrize("kind", ["layer", "channel"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("keyed", [True, False])
def test_losses_and_gradients_are_those_without_recomputation(kind, head, keyed, reentrant):
    model = dropping(kind, head)
    other = copy.deepcopy(model)
    for block in blocks(other):
        recomputed(block, reentrant)
    ours, theirs = train(other, keyed), train(model, keyed)
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@REENTRANT
@pytest.mark.parametrize("frozen", [False, True])
def test_decisions_are_recorded_once(frozen, reentrant):
    model = dropping()
    for gate in gates_of(model).values():
        gate.freeze(torch.ones(1, dtype=torch.bool) if frozen else None)
    for block in blocks(model):
        recomputed(block, reentrant)
    logits = model(DATA[0].clone().requires_grad_())
    gate_means(model)
    logits.sum().backward()
    with pytest.raises(RuntimeError, match="forward pass"):
        gate_means(model)


@REENTRANT
@pytest.mark.parametrize("head", ["ste", "gumbel"])
@pytest.mark.parametrize("keyed", [True, False])
def test_a_backward_pass_through_an_earlier_forward_pass_is_refused_where_there_is_noise(head, keyed, reentrant):
    """Its recomputation would draw the noise of the latest pass: other decisions, and silently wrong gradients."""
    model = dropping(head=head)
    for block in blocks(model):
        recomputed(block, reentrant)

    def forward(step: int, scale: float = 1.0) -> torch.Tensor:
        if keyed:
            set_noise_key(model, NoiseKey(1, step, 0))
        return model(scale * DATA[step].clone().requires_grad_()).square().mean()

    # A pass that is never backpropagated, and one with values that are not finite, are no mistake.
    forward(0)
    forward(1).backward()
    forward(0, scale=math.nan).backward()
    with pytest.raises(UserError, match="backward before the next forward pass") as caught:
        (forward(0) + forward(1)).backward()
    assert "\n" not in str(caught.value)
    for gate in gates_of(model).values():
        gate.random_drop = 0.0
    if head == "ste":
        (forward(0) + forward(1)).backward()


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_checkpointed_blocks_have_the_statistics_of_the_plain_ones(kind):
    model = dropping(kind)
    other = copy.deepcopy(model)
    assert checkpoint_blocks(other) == 3
    train(model, True), train(other, True)
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11, msg=name)
    assert list(model.state_dict()) == list(other.state_dict())


def test_checkpointed_blocks_keep_less_for_backward():
    sizes = []
    for prepare in (lambda model: 0, checkpoint_blocks):
        model, kept = dropping(), []
        prepare(model)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            model(DATA[0].clone().requires_grad_())
        sizes.append(sum(kept))
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize("dense_layers", [1, 2])
def test_a_batch_of_one_sample_trains(dense_layers):
    """Its gate normalizes by running statistics, and leaves them as they are."""
    model = attach_gates(build_model("resnet8", num_classes=10, width=8), dense_layers=dense_layers).train()
    buffers = [b.clone() for gate in gates_of(model).values() for b in gate.body.buffers()]
    F.cross_entropy(model(images(1)), torch.tensor([3])).backward()
    assert torch.isfinite(gate_means(model).values).all()
    after = [b for gate in gates_of(model).values() for b in gate.body.buffers()]
    assert all(map(torch.equal, buffers, after))
    gate = Gate(4, 2).train()
    one = images(1, channels=4)
    gate(one)
    in_training = gate.pop_decisions()[1]
    gate.eval()(one)
    torch.testing.assert_close(in_training, gate.pop_decisions()[1])
    assert all(m.training for m in gate.train().body)
