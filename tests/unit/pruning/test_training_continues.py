"""Once its gates have decided, a gated network trains as the plain small network would: bit for bit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unit_helpers import images, mask_closing, shaken

from dist_prune import attach_gates, build_model, collapse, masked

CLOSED = ("layer1.1", "layer2.0", "layer3.2")


def losses(model: nn.Module, precision: str, steps: int = 3) -> list[float]:
    """Of a few steps of SGD with momentum and weight decay, channels_last, as the recipes train."""
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    torch.manual_seed(1)
    found = []
    for _ in range(steps):
        shown = images(16).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(shown)
        loss = F.cross_entropy(logits.float(), torch.randint(10, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_with_fixed_gates_are_those_of_the_collapsed_network(precision):
    torch.manual_seed(0)
    torch.set_num_threads(1)  # sums in one order
    gated = attach_gates(shaken(build_model("resnet20", num_classes=10, width=8)))
    mask = mask_closing(gated, CLOSED)
    small = collapse(copy.deepcopy(gated), mask)
    expected = losses(small, precision)
    assert losses(masked(gated, mask), precision) == expected
    assert len(set(expected)) == 3
