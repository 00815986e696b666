"""Step time of a gated network against the same network without gates: prints one JSON line.

    python benchmarks/step_time.py [--model resnet56] [--batch 128] [--steps 40] [--precision bf16] [--kind layer]

Both networks train in one process, steps alternating, so that a machine whose speed drifts slows both. A
gated step includes all that the method adds: gating modules, gate means, polarization and activation terms; with
--target_macs also a budget's random drop and bookkeeping, and the freezer's, as in a run before units are pruned.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dist_prune
from dist_prune.gates.cpu_kernels.build import compile_kernels
from dist_prune.gates.freezer import Freezer
from dist_prune.gates.noise import NoiseKey
from dist_prune.gates.wrappers import set_noise_key
from dist_prune.runtime.environment import tune_cpu

LEARNING = 0.1  # of the run is over: units are dropped at random, and nothing is decided yet


def make_step(
    model: nn.Module, images: Tensor, labels: Tensor, bf16: bool, gated: bool, target: float | None = None
) -> Callable[[], float]:
    """A function that trains one step and returns its seconds."""
    budget = dist_prune.macs_budget(model, tuple(images.shape[1:]), target) if target else None
    freezer = Freezer(model, patience=50) if target else None
    numbers = itertools.count()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> float:
        began = time.perf_counter()
        if gated:
            set_noise_key(model, NoiseKey(seed=0, step=next(numbers), first_sample=0))
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels)
        if gated:
            means = dist_prune.gate_means(model)
            loss = loss + dist_prune.polarization(means) + dist_prune.activation(means, weight=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if budget is not None and freezer is not None:
            budget.update(model, means.logits, LEARNING)
            freezer.update(model, means[0].detach().cpu(), open_counts=False)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--open_bias", type=float, default=1.0, help="1: gates start open; 0: about half of them")
    parser.add_argument("--kind", choices=("layer", "channel"), default="layer")
    parser.add_argument("--target_macs", type=float, help="under a budget; without, as the paper trains")
    parser.add_argument("--compile", action="store_true", help="a gated network through torch.compile, too")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        tune_cpu()
        compile_kernels()
    torch.manual_seed(1)
    images = torch.randn(options.batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch,), device=device)
    steps = {}
    for name in ("plain", "gated", *(["compiled"] if options.compile else [])):
        model = dist_prune.build_model(options.model, num_classes=10)
        if name != "plain":
            gates = {"kind": options.kind, "open_bias": options.open_bias, "input_shape": (3, 32, 32)}
            dist_prune.attach_gates(model, **gates)
        if name == "compiled":
            model.compile(fullgraph=True)
        steps[name] = make_step(
            model.to(device), images, labels, options.precision == "bf16", name != "plain",
            options.target_macs if name != "plain" else None,
        )  # fmt: skip
    for _ in range(5):
        [step() for step in steps.values()]
    seconds = {name: [] for name in steps}
    for number in range(options.steps):
        for name in sorted(steps, reverse=number % 2 == 0):
            seconds[name].append(steps[name]())
    ratios = [g / p for g, p in zip(seconds["gated"], seconds["plain"], strict=True)]
    result = {
        "benchmark": "step_time",
        **vars(options),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "plain_ms": round(1000 * statistics.median(seconds["plain"]), 2),
        "gated_ms": round(1000 * statistics.median(seconds["gated"]), 2),
        "ratio_of_medians": round(statistics.median(seconds["gated"]) / statistics.median(seconds["plain"]), 4),
        "median_of_ratios": round(statistics.median(ratios), 4),
    }
    if options.compile:
        over = [g / c for g, c in zip(seconds["gated"], seconds["compiled"], strict=True)]
        result["compiled_ms"] = round(1000 * statistics.median(seconds["compiled"]), 2)
        result["gain_of_compiling"] = round(statistics.median(over), 4)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
