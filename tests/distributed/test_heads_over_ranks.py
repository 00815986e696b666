"""Every head and kind of gate decides for each sample as in one process, however the batch is dealt to ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from scenarios import batch, share
from torch import nn

import dist_prune
from dist_prune import distributed
from dist_prune.gates.gate import Gate
from dist_prune.gates.heads import HEADS, Head
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.wrappers import gated_modules, set_noise_key

CASES = [(kind, head) for kind in ("layer", "channel") for head in HEADS]
SIZES = [3, 5]


def undecided(kind: str, head: str) -> nn.Module:
    """A gated network whose gates differ from sample to sample; batch norm as in evaluation, heads as in training."""
    torch.manual_seed(3)
    model = dist_prune.build_model("resnet8", num_classes=10)
    dist_prune.attach_gates(model, kind, head=head, open_bias=None).eval()
    for _, gated in gated_modules(model):
        nn.init.normal_(gated.gate.last.weight, std=0.5)
        nn.init.zeros_(gated.gate.last.bias)
    for module in model.modules():
        module.training = isinstance(module, (Gate, Head))
    torch.set_num_threads(1)
    return model


def two_steps(kind: str, head: str, sizes: list[int]) -> dict[str, torch.Tensor]:
    """Means of two steps (heads may follow the first) and the gradients of the second, averaged over ranks."""
    model = undecided(kind, head)
    images, labels = share(*batch(8), sizes)
    found = {}
    for step in (1, 2):
        model.zero_grad()
        set_noise_key(model, NoiseKey(seed=7, step=step, first_sample=sum(sizes[: distributed.rank()])))
        logits = model(images)
        means = dist_prune.gate_means(model)
        task = F.cross_entropy(logits, labels, reduction="sum") * distributed.world_size() / 8
        (task + dist_prune.polarization(means, 3.0)).backward()
        found[f"means {step}"] = means.values.detach()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[name] = distributed.all_reduce_sum(parameter.grad) / distributed.world_size()
    return found


def all_cases(sizes: list[int]) -> dict[tuple[str, str], dict[str, torch.Tensor]]:
    return {case: two_steps(*case, sizes) for case in CASES}


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(2, all_cases, SIZES)


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_two_ranks_decide_and_learn_as_one_process(ranks, kind, head):
    expected = two_steps(kind, head, [8])
    means = expected["means 2"]
    assert ((means > 0) & (means < 1)).any(), "gates must be undecided for this to say something"
    for rank in ranks:
        found = rank[kind, head]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            difference = (found[name] - value).abs().max().item()
            assert difference <= 1e-5 * max(value.abs().max().item(), 1e-6), name


def test_stochastic_heads_draw_anew_in_every_step(ranks):
    found = ranks[0]["channel", "gumbel"]
    assert not torch.equal(found["means 1"], found["means 2"])
