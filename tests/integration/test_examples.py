"""The examples run as their first lines say, and add to a loop no more than they claim."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from commands import ROOT
from sklearn.datasets import load_digits

import dist_prune
from dist_prune.measure.macs import count_macs

EPOCHS, TARGET, SHAPE = 3, 0.5, (1, 8, 8)
EXAMPLES = ("bare_torch", "accelerate_deepspeed")
ACCELERATE = ["accelerate", "launch", "--use_deepspeed", "--num_processes", "2", "--main_process_port", "0"]
NOT_ADDED = ("import ", "from ", "dist_prune.build_model(", "dist_prune.save_sliced(", "count_macs(")
needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="Accelerate with DeepSpeed needs transformers"
)


def code_of(example: str) -> list[str]:
    """The lines below the docstring."""
    return (ROOT / "examples" / f"{example}.py").read_text().split('"""', 2)[2].splitlines()


def added_lines(example: str) -> list[str]:
    return [line.strip() for line in code_of(example) if line.endswith("# dist_prune")]


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_loop_grows_by_six_lines_at_most(example):
    assert 0 < len(added_lines(example)) <= 6
    unmarked = [line for line in code_of(example) if not line.endswith("# dist_prune")]
    ours = [line for line in unmarked if re.search(r"\b(dist_prune|budget|means)\.", line)]
    assert [line for line in ours if not any(words in line for words in NOT_ADDED)] == []


def test_every_loop_grows_by_the_same_lines():
    assert added_lines("bare_torch") == added_lines("accelerate_deepspeed")


@pytest.mark.parametrize(
    ("example", "ranks"),
    [
        pytest.param("bare_torch", 1, marks=pytest.mark.drill),
        ("bare_torch", 2),
        pytest.param("accelerate_deepspeed", 2, marks=[needs_accelerate, pytest.mark.drill]),
    ],
)
def test_an_example_saves_the_network_it_speaks_of(example, ranks, command, forked, forked_ranks, tmp_path):
    out = tmp_path / "sliced"
    words = [f"examples/{example}.py", "--epochs", EPOCHS, "--out", out]
    if example == "accelerate_deepspeed":
        done = command(*ACCELERATE, *words)
    elif ranks == 1:
        done = forked("python", *words)
    else:  # torchrun itself is tested with launch/train.py
        done = forked_ranks(ranks, "python", *words)[0]
    assert done.code == 0, done.err
    ((accuracy, share),) = re.findall(r"accuracy ([\d.]+), MACs ([\d.]+) of", done.out)  # said by one rank
    assert f"processes: {ranks}" in done.out
    assert ("DEEPSPEED" in done.out) == (example == "accelerate_deepspeed")

    small = dist_prune.load_sliced(out)
    assert float(share) == pytest.approx(TARGET, abs=0.01)
    dense = dist_prune.build_model("resnet20", num_classes=10, in_channels=1)
    assert share == f"{count_macs(small, SHAPE) / count_macs(dense, SHAPE):.4f}"
    assert accuracy == f"{accuracy_of(small):.4f}"
    assert float(accuracy) > 0.5  # chance is 0.1


@torch.no_grad()
def accuracy_of(network: torch.nn.Module) -> float:
    digits = load_digits()
    images = torch.tensor(digits.images[1437:]).float().unsqueeze(1) / 16
    return (network(images).argmax(1) == torch.tensor(digits.target[1437:])).float().mean().item()
