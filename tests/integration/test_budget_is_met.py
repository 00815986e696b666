"""Say the budget, get the budget: real training runs on the handwritten digits, in a plain torch loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import dist_prune
from dist_prune.gates.budget import Budget
from dist_prune.gates.selection import budget_status
from dist_prune.measure.macs import count_macs

EPOCHS, BATCH = 14, 128


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All images (1797, 1, 8, 8), standardized, and labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.tensor(data.target)


def train(kind: str, target: float) -> tuple[torch.nn.Module, Budget]:
    """A ResNet-14 of 8 channels, trained under a budget."""
    torch.manual_seed(1)
    model = dist_prune.build_model("resnet14", num_classes=10, in_channels=1, width=8)
    dist_prune.attach_gates(model, kind)
    budget = dist_prune.macs_budget(model, (1, 8, 8), target)
    images, labels = digits()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
    order = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(images)).split(BATCH)[:-1]]
    for step, batch in enumerate(order):
        progress = step / steps
        logits = model(images[batch])
        means = dist_prune.gate_means(model)
        loss = F.cross_entropy(logits, labels[batch])
        loss = loss + dist_prune.polarization(means, budget.polarization_weight(progress))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        budget.update(model, means.logits, progress)
    return model, budget


# The lowest budget of layers, where they are coarsest, and one of channels; the others repeat the claim.
QUICK = [("layer", 0.3), ("channel", 0.5)]
OTHERS = [("layer", 0.5), ("layer", 0.7), ("channel", 0.3), ("channel", 0.7)]


@pytest.mark.parametrize(
    ("kind", "target"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.drill) for case in OTHERS)]
)
def test_the_gates_agree_on_a_network_of_the_budget(kind, target):
    model, budget = train(kind, target)
    images, labels = digits()
    mask = dist_prune.consensus_mask(model, images.split(256))
    small = dist_prune.collapse(model, mask)
    share = count_macs(small, (1, 8, 8)) / budget.costs.dense
    assert share == pytest.approx(budget.costs.of(mask.kept) / budget.costs.dense)
    assert budget_status(budget.costs, mask.kept, target) != "missed", f"{share:.3f} instead of {target}"
    if kind == "channel":
        assert share == pytest.approx(target, abs=0.01)
    assert mask.agreement >= 0.99, "before any rounding"
    assert mask.flipped == 0
    with torch.no_grad():
        accuracy = (small(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9, "what is left has learned the task"
